"""A table of numbers: Friedman's function of five columns, hidden among others of heavy tails.

The tables that scikit-learn ships are solved in some dozen steps. Its generator gives as many rows
as one wants of a function with an interaction, a square and noise.
"""

import torch
from sklearn.datasets import make_friedman1
from torch import Tensor, nn

ROWS, TEST_ROWS, COLUMNS = 20_000, 5_000, 30
TAILED = 10
"""Columns that are made heavy-tailed, as incomes and counts are: the exponential of what they were.

The first of them is one that matters.
"""
WIDTH, BLOCKS = 128, 3


def examples() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Columns and the target, standardised by the rows to train on; then those to judge by."""
    columns, target = make_friedman1(ROWS + TEST_ROWS, COLUMNS, noise=0.5, random_state=0)
    inputs, targets = (torch.from_numpy(part).float() for part in (columns, target[:, None]))
    inputs[:, 4 : 4 + TAILED] = (3 * inputs[:, 4 : 4 + TAILED]).exp()
    parts = []
    for part in (inputs, targets):
        mean, deviation = part[:ROWS].mean(0), part[:ROWS].std(0)
        parts.append(((part - mean) / deviation).split([ROWS, TEST_ROWS]))
    (train, test), (train_targets, test_targets) = parts
    return (train, train_targets), (test, test_targets)


def explained(network: nn.Module, examples: tuple[Tensor, Tensor]) -> float:
    """R^2, the share of the variance of the targets that the network explains."""
    inputs, targets = examples
    left = (network(inputs) - targets).square().mean()
    return float(1 - left / targets.var(correction=0))


class Residual(nn.Module):
    """LayerNorm and two linear layers, and a way round them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Add both."""
        added: Tensor = self.body(inputs)
        return inputs + added


def network() -> nn.Module:
    """A residual MLP of width 128."""
    blocks = (Residual() for _ in range(BLOCKS))
    return nn.Sequential(
        nn.Linear(COLUMNS, WIDTH), *blocks, nn.LayerNorm(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
    )
