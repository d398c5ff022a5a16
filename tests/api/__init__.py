"""Small networks and short trainings that many tests share."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import sngd_compile as sngd
from sngd_compile import Config

AS_IN_THE_PAPER = {"over_outputs": "sum", "trust_radius": None, "trust_share": None}
"""The metric and the steps that references written out by hand have."""

EVERY_STEP = Config(
    refresh_every=2,
    early_refreshes=(1,),
    observe_every=1,
    early_observations=(),
    max_rows=None,
    step_budget=math.inf,
    over_outputs="sum",
)
"""Observe every row of every step; renew the root after steps 1, 2, 4, 6, ..., in full."""

FISHERS = {
    "shared": EVERY_STEP,
    "symmetric": EVERY_STEP.replace(root="symmetric"),
    "sketch": EVERY_STEP.replace(fisher="sketch", rank=2),
    "diagonal": EVERY_STEP.replace(fisher="diagonal"),
    "block": EVERY_STEP.replace(fisher="block", block_size=2),
    "unit": EVERY_STEP.replace(fisher="unit", activation="tanh"),
    "kronecker": EVERY_STEP.replace(fisher="kronecker", damping_rel_trace=1e-2),
}
"""Every kind of local Fisher, and a root that is not triangular."""


def mlp() -> nn.Sequential:
    """Two linear layers for inputs `[N, 5]`."""
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def batch(step: int = 0, size: int = 7, width: int = 5) -> Tensor:
    """Draw the inputs of one step, without touching the global generator."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, width, generator=generator) + 0.3


def sgd(net: nn.Module) -> Optimizer:
    """Make the optimizer that the documentation recommends."""
    return torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9)


def train(
    net: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    steps: int = 5,
    first: int = 0,
    inputs: Callable[[int], Tensor] = batch,
) -> Optimizer:
    """Minimise the mean square of the outputs for a few steps."""
    optimizer = optimizer or sgd(net)
    for step in range(first, first + steps):
        optimizer.zero_grad()
        net(inputs(step)).square().mean().backward()
        optimizer.step()
    return optimizer


def trained(model: nn.Module | None = None, config: Config = EVERY_STEP) -> nn.Module:
    """Reconstruct a model and train it until its roots are no identities any more."""
    net = sngd.reconstruct(model or mlp(), config)
    train(net)
    return net


@torch.no_grad()
def apart(one: nn.Module, other: nn.Module, x: Tensor | None = None) -> float:
    """Return the largest difference of two networks' outputs; nothing is observed."""
    x = batch(99) if x is None else x
    return float((one(x) - other(x)).abs().max())


def steps_of(net: nn.Module) -> list[int]:
    """Return the optimizer steps that each Fisher layer has counted."""
    return [layer.schedule.steps for layer in sngd.fisher_layers(net).values()]


def rows_of(net: nn.Module) -> list[int]:
    """Return the rows that each Fisher layer has seen."""
    return [layer.rows_seen for layer in sngd.fisher_layers(net).values()]
