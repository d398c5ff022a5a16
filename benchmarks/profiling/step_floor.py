"""The least that the parts of a step could take: multiply-adds over what one thread does a second.

Symbols of docs/method.md, section 9: N rows, K weights and D = K + bias of each of O outputs.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile.fisher.kinds.base import kind_of
from workloads import Workload

IMAGES = 16
"""Least number of images that an observed convolution draws."""


@dataclass(frozen=True)
class LayerWork:
    """Multiply-adds of one layer in one step, by what they are for."""

    is_convolution: bool
    plain: int
    root: int
    observation: int
    refresh: int


def rows_of(model: nn.Module, inputs: Tensor) -> dict[str, int]:
    """How many rows meet the weight of each module in one forward pass, by the module's name."""
    rows: dict[str, int] = {}

    def note(name: str, outputs: int) -> None:
        rows[name] = outputs

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(
                lambda module, _, out, name=name: note(name, out.numel() // len(module.weight))
            )
    model(inputs)
    return rows


def work_of(workload: Workload) -> Iterator[LayerWork]:
    """The work of every layer, in the order of the network: the first needs no input gradient.

    A root is applied where that takes less, to the activations or to the weights. What is no
    product, as a normalisation or an embedding, has no work here.
    """
    model = workload.model()
    inputs, _ = next(workload.batches())
    rows = rows_of(model, inputs)
    sites = [s for s in sngd.explain(model).sites if s.places[0].module_name in rows]
    for number, site in enumerate(sites):
        count, elements = rows[site.places[0].module_name], site.shape[0] * site.layout.width
        is_convolution = len(site.shape) > 2
        most = 4 * site.size
        if is_convolution:
            most = max(most, IMAGES * count // len(inputs))
        on_rows = count * site.step_work // site.layout.outputs // (2 if number == 0 else 1)
        yield LayerWork(
            is_convolution,
            count * elements * (2 if number == 0 else 3),
            min(on_rows, site.step_work),
            kind_of(site.spec).observation_work(site.spec, min(count, most)),
            site.refresh_work,
        )


def work_by_group(workload: Workload, kind: str) -> dict[str, int]:
    """Multiply-adds of a step of one kind: plain, steady, observed or refresh."""
    layers = list(work_of(workload))
    has_root = kind != "plain"
    groups = {
        "matrix products": sum(
            layer.plain * (not layer.is_convolution) + layer.root * has_root for layer in layers
        ),
        "convolutions": sum(layer.plain * layer.is_convolution for layer in layers),
        "observation": sum(layer.observation for layer in layers) * (kind == "observed"),
        "refresh": sum(layer.refresh for layer in layers) * (kind == "refresh"),
    }
    return {name: work for name, work in groups.items() if work}


def multiply_adds_a_second(side: int = 512, runs: int = 30) -> float:
    """What a product of two square float32 matrices gets out of the present threads, at its best.

    A floor is no typical time: of what a busy machine lets through, the fastest counts.
    """
    one, other = torch.randn(side, side), torch.randn(side, side)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        torch.mm(one, other)
        seconds.append(time.perf_counter() - start)
    return side**3 / min(seconds)
