"""Foreign code that reads the weight of another module, and forwards that change a weight."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config

pytestmark = pytest.mark.usefixtures("float64")
X = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, 2.0]], dtype=torch.float64)


class Reader(nn.Module):
    """Foreign code that reads the weight of a child and calls a function of its own."""

    def __init__(self, change=None):
        super().__init__()
        self.child, self.change = nn.Linear(3, 4), change

    def forward(self, x: Tensor) -> Tensor:
        """Use the child's weights without calling it."""
        if self.change is not None:
            self.change(self.child)
        return F.linear(x, self.child.weight, self.child.bias)


def test_code_that_reads_the_weight_of_a_child():
    net = sngd.reconstruct(Reader(), Config(max_rows=None))
    net(X)
    rows = F.pad(X, (0, 1), value=1.0)
    factor = sngd.fisher_layers(sngd.refresh_(net))["child.weight"].factor
    torch.testing.assert_close(factor, rows.T @ rows / 2)


@torch.no_grad()
def clamped(child):
    child.weight.clamp_(-1, 1)


def replaced(child):
    child.weight.data = torch.zeros(4, 3)


def assigned(child):
    child.weight[0] = 0


def multiplied(child):
    child.weight *= 2


def written(child):
    torch.mul(torch.ones(4, 3), 2, out=child.weight)


@pytest.mark.parametrize(
    "change",
    [clamped, replaced, assigned, multiplied, written, lambda c: nn.init.zeros_(c.weight)],
)
def test_a_weight_that_is_changed_in_a_forward_is_refused_as_it_happens(change):
    net = sngd.reconstruct(Reader(change))
    with pytest.raises(
        sngd.ModelError, match=r"child.weight: .* at .*test_changed_weights.* in place"
    ):
        net(X)


def test_a_weight_that_is_left_out_may_be_changed():
    model = Reader(clamped)
    net = sngd.reconstruct(model, overrides={"child.weight": None})
    torch.testing.assert_close(net(X), model(X))


def test_harmless_calls_are_not_refused():
    net = sngd.reconstruct(Reader(lambda child: child.weight.requires_grad_()))
    net(X)


class Own(nn.Module):
    """A module that changes its weight, captured or not."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(4, 3))


class Shown(Own):
    """By a method of the attribute."""

    def forward(self, x: Tensor) -> Tensor:
        """Change it where a condition holds."""
        with torch.no_grad():
            self.a.clamp_(-1, 1)
        return F.linear(x, self.a)


class Data(Own):
    """By its data."""

    def forward(self, x: Tensor) -> Tensor:
        """Change it where a condition holds."""
        if x.sum() < 1e9:
            self.a.data.mul_(0.5)
        return F.linear(x, self.a)


@pytest.mark.parametrize("kind", [Shown, Data])
def test_a_change_that_the_source_shows_is_refused_beforehand(kind):
    model = kind()
    (skip,) = sngd.explain(model).skips
    assert "changes it in place" in skip.reason
    net = sngd.reconstruct(model)
    torch.testing.assert_close(net(X), model(X))


class Raw(nn.Module):
    """Reads its weight by attribute, and through a method out of the dictionary."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))

    def own(self):
        """Return the parameter itself."""
        return self._parameters["weight"]

    def forward(self, x):
        """Use it twice."""
        return F.linear(x, self.weight) + F.linear(x, self.own())


def test_a_forward_that_reads_the_dictionary_of_parameters_keeps_its_weight():
    model = Raw()
    (skip,) = sngd.explain(model).skips
    assert "out of _parameters" in skip.reason
    net, x = sngd.reconstruct(model), torch.randn(8, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    for _ in range(3):
        net(x).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(net(x), model(x))
