"""A network on a GPU, beside the same one on a CPU."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config

DEVICE = torch.device("cuda")
SETTING = Config(
    refresh_every=2,
    early_refreshes=(1,),
    observe_every=1,
    early_observations=(),
    damping_rel_trace=1e-2,
    max_rows=None,
)
"""Observe every row of every step; renew the root after steps 1, 2, 4, 6."""


def batch(shape: tuple[int, ...], step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Draw inputs and labels of three classes, on the host: both devices get the same ones."""
    generator = torch.Generator().manual_seed(100 + step)
    inputs = torch.randn((13, *shape), generator=generator, dtype=torch.float64) + 0.2
    return inputs.to(dtype), inputs.flatten(1)[:, :3].argmax(1)


def train(net: nn.Module, shape: tuple[int, ...], steps: int = 7, *, trained=None) -> list[float]:
    """Train where the network is and return the losses; `trained` is what is called for it."""
    parameter = next(net.parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(steps):
        inputs, labels = batch(shape, step, parameter.dtype)
        optimizer.zero_grad()
        outputs = (net if trained is None else trained)(inputs.to(parameter.device))
        loss = F.cross_entropy(outputs, labels.to(parameter.device))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def on_both(model: nn.Module, config: Config = SETTING) -> tuple[nn.Module, nn.Module]:
    """Reconstruct a model on the host and a copy of it on the GPU."""
    return sngd.reconstruct(model, config), sngd.reconstruct(
        copy.deepcopy(model).to(DEVICE), config
    )


def assert_same_state(net: nn.Module, expected: nn.Module, rtol: float = 1e-8) -> None:
    """Compare the folded weights and the second moments."""
    found, wanted = sngd.fold(net).state_dict(), sngd.fold(expected).state_dict()
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol, check_device=False)
    layers = sngd.fisher_layers(net), sngd.fisher_layers(expected)
    assert list(layers[0]) == list(layers[1])
    for one, other in zip(*(each.values() for each in layers), strict=True):
        assert one.rows_seen == other.rows_seen
        factors = one.factor, other.factor
        torch.testing.assert_close(*factors, rtol=rtol, atol=rtol, check_device=False)
