"""A physics-informed network: Poisson's equation on the unit square, with a solution known.

The loss is the mean square of what is left of the equation inside, and of the error on the border.
Derivatives by the inputs are part of it, so it is a function of the network, not of its outputs.
"""

import math

import torch
from torch import Tensor, nn

POINTS = 800
"""Inside, and as many on the border: all of them are in every step, as L-BFGS needs it."""

TEST_POINTS = 2_000
BORDER_WEIGHT = 10.0
STRENGTH = 5 * math.pi**2
"""Of the source. The equation is divided by it, so that inside and border are of one size."""


def solution(points: Tensor) -> Tensor:
    """The function that solves the equation: `[N, 2]` to `[N, 1]`."""
    return torch.sin(math.pi * points[:, :1]) * torch.sin(2 * math.pi * points[:, 1:])


def source(points: Tensor) -> Tensor:
    """Minus the Laplacian of the solution."""
    return STRENGTH * solution(points)


def laplacian(network: nn.Module, points: Tensor) -> Tensor:
    """The sum of second derivatives of `[N, 1]` by `[N, 2]`, at each point."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(network(points).sum(), points, create_graph=True)
        found = torch.zeros_like(points[:, :1])
        for axis in range(2):
            (of_axis,) = torch.autograd.grad(slopes[:, axis].sum(), points, create_graph=True)
            found = found + of_axis[:, axis : axis + 1]
        return found


def equation(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss.

    Args:
        network: Maps points `[N, 2]` to `[N, 1]`.
        inputs: A point inside and one on the border, `[N, 4]`.
        targets: The source at the first and the solution at the second, `[N, 2]`.
    """
    inside, border = inputs.split(2, dim=1)
    left = (laplacian(network, inside) + targets[:, :1]) / STRENGTH
    error: Tensor = network(border) - targets[:, 1:]
    loss: Tensor = BORDER_WEIGHT * (left.square().mean() + error.square().mean())
    return loss


def relative_error(network: nn.Module, examples: tuple[Tensor, Tensor]) -> float:
    """The length of the error over that of the solution, on points of the test."""
    points, values = examples
    return float((network(points) - values).norm() / values.norm())


def examples() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Points to train on with their targets, and points to judge by with the solution."""
    generator = torch.Generator().manual_seed(0)
    inside, border, test = torch.rand(2 * POINTS + TEST_POINTS, 2, generator=generator).split(
        [POINTS, POINTS, TEST_POINTS]
    )
    sides = torch.arange(POINTS) % 4
    border = border.clone()
    border[torch.arange(POINTS), sides // 2] = (sides % 2).float()
    train = torch.cat([inside, border], 1), torch.cat([source(inside), solution(border)], 1)
    return train, (test, solution(test))


def network() -> nn.Module:
    """A tanh MLP, 2-64-64-64-1."""
    return nn.Sequential(
        nn.Linear(2, 64),
        nn.Tanh(),
        nn.Linear(64, 64),
        nn.Tanh(),
        nn.Linear(64, 64),
        nn.Tanh(),
        nn.Linear(64, 1),
    )
