"""A parameter whose numbers a model holds in a second place is left, and the reason names it."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from api import EVERY_STEP, apart, batch, mlp, sgd, train

pytestmark = pytest.mark.usefixtures("float64")


class Keeping(nn.Module):
    """Uses the weight of its first layer a second time, from where it was kept."""

    def __init__(self, keep: Callable[[nn.Module, nn.Parameter], Callable[[], Tensor]]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 3)
        keep(self, self.first.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Use both layers, and what was kept."""
        return self.second(torch.tanh(self.first(x)) + self.again(x))


class InList(Keeping):
    """In a list."""

    def __init__(self) -> None:
        super().__init__(lambda module, weight: setattr(module, "kept", [weight]))

    def again(self, x: Tensor) -> Tensor:
        """Multiply by it."""
        return F.linear(x, self.kept[0])


class InDictionary(Keeping):
    """In a dictionary of tuples."""

    def __init__(self) -> None:
        super().__init__(lambda module, weight: setattr(module, "kept", {"a": (0, weight)}))

    def again(self, x: Tensor) -> Tensor:
        """Multiply by it."""
        return F.linear(x, self.kept["a"][1])


class InRecord(Keeping):
    """In an object of a class of the user's."""

    def __init__(self) -> None:
        super().__init__(lambda module, weight: setattr(module, "kept", SimpleNamespace(w=weight)))

    def again(self, x: Tensor) -> Tensor:
        """Multiply by it."""
        return F.linear(x, self.kept.w)


class InPartial(Keeping):
    """In a function that is called with it."""

    def __init__(self) -> None:
        super().__init__(
            lambda module, weight: setattr(module, "kept", partial(F.linear, weight=weight))
        )

    def again(self, x: Tensor) -> Tensor:
        """Multiply by it."""
        return self.kept(x)


class InBuffer(Keeping):
    """As a buffer of the other layer."""

    def __init__(self) -> None:
        super().__init__(lambda module, weight: module.second.register_buffer("kept", weight))

    def again(self, x: Tensor) -> Tensor:
        """Multiply by it."""
        return F.linear(x, self.second.kept)


class PartOfMemory(Keeping):
    """As a tensor that has some of its rows, from the second on."""

    def __init__(self) -> None:
        super().__init__(lambda module, weight: setattr(module, "kept", weight.detach()[1:4]))

    def again(self, x: Tensor) -> Tensor:
        """Multiply by it."""
        return F.linear(x, self.kept).sum(-1, keepdim=True)


class OtherParameter(Keeping):
    """As another parameter of the same memory."""

    def __init__(self) -> None:
        super().__init__(lambda module, weight: setattr(module, "kept", nn.Parameter(weight.data)))

    def again(self, x: Tensor) -> Tensor:
        """Multiply by it."""
        return F.linear(x, self.kept)


PLACES = {
    InList: "the attribute kept",
    InDictionary: "the attribute kept",
    InRecord: "the attribute kept",
    InPartial: "the attribute kept",
    InBuffer: "the buffer second.kept",
    PartOfMemory: "the attribute kept",
    OtherParameter: "the parameter kept",
}


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model from the same random numbers each time."""
    torch.manual_seed(0)
    return build()


@pytest.mark.parametrize("build", PLACES, ids=lambda build: build.__name__)
def test_it_trains_and_folds_as_the_plain_network(build):
    model, net = (seeded(build) for _ in range(2))
    reasons = {skip.name: skip.reason for skip in sngd.explain(model).skips}
    assert PLACES[build] in reasons.get("first.weight", "")
    sngd.reconstruct(net, EVERY_STEP, inplace=True)  # a copy shares no memory among its parameters
    assert "first.weight" not in sngd.fisher_layers(net)
    assert apart(net, model) < 1e-12
    train(net)
    before = net(batch(9)).detach()
    sngd.refresh_(net)
    torch.testing.assert_close(net(batch(9)), before)
    sngd.fold_(net)
    torch.testing.assert_close(net(batch(9)), before)


def test_one_parameter_of_several_modules_is_one():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.LSTM(4, 3))
    model[2].weight = model[0].weight
    model.optimizer = sgd(model)
    model.names = {"weight": "0.weight", "sizes": torch.ones(3)}
    assert not any("numbers too" in skip.reason for skip in sngd.explain(model).skips)
    layers = list(sngd.fisher_layers(sngd.reconstruct(model)))
    assert {"0.weight", "2.weight"} & set(layers)
    assert {"3.weight_ih_l0", "3.weight_hh_l0"} < set(layers)


class Counted(tuple):
    """A tuple that does not say how long it is, as irreps of e3nn."""

    def __len__(self) -> int:
        """Refuse."""
        raise NotImplementedError


class Parts(nn.Linear):
    """Keeps such a tuple, and reads it in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply once for each part."""
        return sum(part * super(Parts, self).forward(x) for part in self.parts)


def test_containers_of_a_class_of_its_own_are_looked_into():
    model = nn.Sequential(Parts(5, 4), nn.Linear(4, 3))
    model[0].parts, model.names = Counted((1.0, 2.0)), {model[1].weight: "a key"}
    net = sngd.reconstruct(model, EVERY_STEP)
    assert apart(net, model) == 0
    train(net)
    assert apart(net, sngd.fold(net)) < 1e-11
    assert "1.weight" in sngd.fisher_layers(net)
    model[0].parts = Counted((1.0, model[1].weight))
    reasons = {skip.name: skip.reason for skip in sngd.explain(model).skips}
    assert "the attribute 0.parts" in reasons["1.weight"]


def test_parameters_without_numbers_are_told_apart():
    model = mlp().to("meta")
    model.kept = [model[0].weight]
    reasons = {skip.name: skip.reason for skip in sngd.explain(model).skips}
    assert list(reasons) == ["0.weight", "0.bias"]


def test_what_is_kept_later_changes_no_report():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    before = str(sngd.explain(net))
    net.kept = list(net.parameters())
    assert str(sngd.explain(net)) == before
