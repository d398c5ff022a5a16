"""`nn.Linear` and `F.linear` on a module's own parameter obey every law."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laws import Case, every_law, every_two_sided_law, linear_case, linear_rows

pytestmark = pytest.mark.usefixtures("float64")


class Own(nn.Module):
    """`F.linear` with parameters of its own."""

    def __init__(self, bias: bool = True, train_bias: bool = True):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3))
        self.offset = nn.Parameter(torch.randn(4), requires_grad=train_bias) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return F.linear(x, weight=self.kernel, bias=self.offset)


class Twice(Own):
    """Two calls of one weight in one forward."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to two inputs."""
        once = F.linear(x, self.kernel, self.offset)
        return torch.cat([once, F.linear(2 * x[1:] - 1, self.kernel, self.offset)])


class Chain(nn.Module):
    """Two weights of one module, the second on the output of the first."""

    def __init__(self):
        super().__init__()
        self.down = nn.Parameter(torch.randn(2, 5))
        self.up = nn.Parameter(torch.randn(7, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by a matrix of rank two."""
        return F.linear(F.linear(x, self.down), self.up)


def twice_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Take the rows of both calls."""
    return torch.cat([x, 2 * x[1:] - 1])


def chain_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Take what reaches the second weight."""
    return (x @ layer.down.mT).detach()


own = partial(Case, shape=(5, 3), rows=linear_rows, weight="kernel", bias="offset")
CASES = [
    linear_case(5, 3, (7,)).called("more rows than outputs"),
    linear_case(5, 11, (3,)).called("fewer rows than outputs"),
    own(name="two calls", module=Twice, rows=twice_rows),
    linear_case(3, 4, (5, 3)),
    linear_case(5, 11, (3,), bias=False),
    linear_case(150, 3, (7,)),
    linear_case(3, 4, (2, 3, 3), bias=False),
    linear_case(3, 2, ()),
    linear_case(1, 3, (5,)),
    linear_case(1, 3, (5,), bias=False).called("D = 1"),
    linear_case(4, 3, (1,)).called("batch of one"),
    own(name="own bias", module=Own),
    own(name="no bias", module=partial(Own, bias=False), bias=None),
    own(name="frozen bias", module=partial(Own, train_bias=False), bias=None),
    Case(name="chain", module=Chain, shape=(6, 5), rows=chain_rows, weight="up", bias=None),
]


@every_law(CASES)
def test_linear(laws):
    laws.check()


@every_two_sided_law(CASES)
def test_linear_with_an_output_side(laws):
    laws.check()
