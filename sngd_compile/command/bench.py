"""What a step of a reconstructed network costs beside one of its model, on one batch."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from sngd_compile.reconstruct import reconstruct
from sngd_compile.verification.outputs import mean_square


def step_times(
    model: nn.Module,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    loss: Callable[[Any], Tensor] | None,
    steps: int,
) -> dict[str, float]:
    """Return seconds of a step of SGD, alternating between the model and the network.

    Args:
        model: It is trained, and so is a network that is made of a copy.
        inputs: Arguments and named arguments of a forward pass.
        loss: Output to scalar; None as for `verify`.
        steps: Of each, after as many to warm up as a tenth of them.

    Returns:
        "plain" and "reconstructed", medians; "mean_ratio", of the sums, with observed steps and
        refreshes in it.
    """
    networks = {"reconstructed": reconstruct(model), "plain": model}
    optimizers = {
        name: torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9)
        for name, net in networks.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    args, kwargs = inputs
    warm = steps // 10
    for step in range(warm + steps):
        for name, net in networks.items():
            begun = perf_counter()
            optimizers[name].zero_grad()
            (loss or mean_square)(net(*args, **kwargs)).backward()
            optimizers[name].step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if step >= warm:
                seconds[name].append(perf_counter() - begun)
    ratio = sum(seconds["reconstructed"]) / sum(seconds["plain"])
    return {name: median(taken) for name, taken in seconds.items()} | {"mean_ratio": ratio}
