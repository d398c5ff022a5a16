"""Without damping, an affine change of the inputs leaves the function's trajectory as it is."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config

pytestmark = pytest.mark.usefixtures("float64")
CHANNELS, STEPS = 4, 20


def mlp() -> nn.Sequential:
    """Read `[N, CHANNELS]`."""
    return nn.Sequential(nn.Linear(CHANNELS, 7), nn.Tanh(), nn.Linear(7, 3))


def conv_net() -> nn.Sequential:
    """Read `[N, CHANNELS, 5, 4]`, with no padding: zeros around an image would not be shifted."""
    return nn.Sequential(
        nn.Conv2d(CHANNELS, 5, (2, 3)),
        nn.Tanh(),
        nn.Conv2d(5, 4, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


def change_inputs(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Return `M x + b` in every position."""
    return torch.einsum("ij,nj...->ni...", matrix, x) + shift.view(-1, *[1] * (x.dim() - 2))


@torch.no_grad()
def undo_in_first_layer_(model: nn.Sequential, matrix: Tensor, shift: Tensor) -> nn.Sequential:
    """Let a model compute from `M x + b` what it computed from `x`."""
    weight, bias = model[0].weight, model[0].bias
    weight.copy_(torch.einsum("oi...,ij->oj...", weight, matrix.inverse()))
    bias -= torch.einsum("oi...,i->o", weight, shift)
    return model


def trajectory(net: nn.Module, batches: list[Tensor], probe: Tensor) -> Tensor:
    """Train by heavy-ball SGD and return the outputs on `probe` after every step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9)
    outputs = []
    for inputs in batches:
        optimizer.zero_grad()
        labels = torch.arange(len(inputs)) % 3
        F.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
        outputs.append(net.eval()(probe).detach())
        net.train()
    return torch.stack(outputs)


def difference(model: nn.Sequential, shape: tuple[int, ...], damping: float | None) -> float:
    """Train on `x` and on `M x + b`; return the largest relative difference of the functions.

    Args:
        model: Start of both trainings; not changed.
        shape: Of a batch.
        damping: Fraction of the trace, or None for plain gradient descent.
    """
    matrix = 0.4 * torch.randn(CHANNELS, CHANNELS) + torch.eye(CHANNELS)
    shift = torch.randn(CHANNELS)
    batches = [torch.randn(shape) for _ in range(STEPS)]
    changed = undo_in_first_layer_(copy.deepcopy(model), matrix, shift)
    paths = []
    for start, data in (
        (copy.deepcopy(model), batches),
        (changed, [change_inputs(batch, matrix, shift) for batch in batches]),
    ):
        net = start if damping is None else warmed_up(start, data[0], damping)
        paths.append(trajectory(net, data, data[-1]))
    return float((paths[0] - paths[1]).abs().max() / paths[0].abs().max())


def warmed_up(model: nn.Module, inputs: Tensor, damping: float) -> nn.Module:
    """Reconstruct, and leave the identity root, which is not invariant, before the first step."""
    damped = {"damping_rel_trace": damping, "damping_abs": 0.0}
    config = Config(refresh_every=4, observe_every=1, max_rows=None, **damped)
    net = sngd.reconstruct(model, config)
    net(inputs)
    return sngd.refresh_(net)


@pytest.mark.parametrize(
    ("network", "shape"), [(mlp, (50, CHANNELS)), (conv_net, (60, CHANNELS, 5, 4))]
)
def test_the_function_does_not_see_an_affine_change_of_the_inputs(network, shape):
    torch.manual_seed(3)
    model = network()
    assert difference(model, shape, damping=0.0) < 1e-12
    assert difference(model, shape, damping=1e-9) < 1e-5
    assert difference(model, shape, damping=1e-2) > 1e-3
    assert difference(model, shape, damping=None) > 1e-2
