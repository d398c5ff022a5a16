"""A parameter that a class uses elementwise is no matrix; the plan reads that in the source."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from api import EVERY_STEP
from sngd_compile.rules.source import is_used_elementwise


class Selective(nn.Module):
    """Branches on its input, so that no graph repeats it."""

    def __init__(self):
        super().__init__()
        self.rates = nn.Parameter(torch.randn(3, 3))
        self.matrix = nn.Parameter(torch.randn(3, 3))
        self.stacked = nn.Parameter(torch.randn(3, 3))
        nn.init.zeros_(self.rates)

    def forward(self, x: Tensor) -> Tensor:
        """Decay, then multiply."""
        if x.sum() > 0:
            x = x @ torch.exp(-self.rates.float())
        x = torch.cat([x, self.stacked])
        return F.linear(x.to(self.matrix.dtype), self.matrix) + self.rates.shape[0]


class Inherited(Selective):
    """Uses the rates as a matrix after all."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return super().forward(x) @ self.rates


def test_only_what_is_elementwise_everywhere_is():
    names = ("rates", "matrix", "stacked", "absent")
    assert [is_used_elementwise(Selective, name) for name in names] == [True, False, True, False]
    assert not is_used_elementwise(Inherited, "rates")


def test_a_class_without_source_is_taken_at_its_shapes():
    namespace: dict = {"nn": nn}
    exec("class Hidden(nn.Module):\n    def forward(self, x): return x + self.a", namespace)
    assert not is_used_elementwise(namespace["Hidden"], "a")


def test_the_plan_says_so():
    plan = sngd.explain(Selective())
    assert [site.name for site in plan.sites] == ["matrix"]
    assert all("used elementwise" in skip.reason for skip in plan.skips)


class Hidden(nn.Module):
    """Uses its matrix in a way that no source tells."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by a power of it."""
        matrix = self.matrix
        return x @ torch.linalg.matrix_power(matrix, 2) if x.sum() < 1e9 else x


def test_a_network_says_what_it_has_not_observed():
    net = sngd.reconstruct(Hidden(), EVERY_STEP)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    assert "no input observed" not in str(sngd.explain(net))
    net(torch.randn(4, 3)).sum().backward()
    with pytest.warns(sngd.SngdWarning, match=r"matrix: no input.*matrix_power"):
        optimizer.step()
    (site,) = sngd.explain(net).sites
    assert "no input observed in 1 steps of plain descent: it enters" in site.note
