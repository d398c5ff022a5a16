"""A captured forward follows the module: attributes set later, modes, profilers, pickling."""

import cProfile
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sngd_compile as sngd
from api import apart, batch, trained
from capture import Layer, reason
from sngd_compile import SngdError

pytestmark = pytest.mark.usefixtures("float64")
X = torch.ones(2, 3, dtype=torch.float64)


class Tempered(Layer):
    """Reads attributes that a user may set later."""

    def __init__(self):
        super().__init__()
        self.scale, self.extra, self.doubled = 1.0, None, False

    def forward(self, x):
        y = self.linear(x) * self.scale
        if self.extra is not None:
            y = self.extra(y)
        return 2 * y if self.doubled else y


@pytest.mark.parametrize(
    ("name", "value"), [("scale", 3.0), ("doubled", True), ("extra", nn.Tanh())]
)
def test_an_attribute_set_later_counts(name, value):
    model = Tempered()
    net = sngd.reconstruct(model)
    before = net(X)
    for each in (model, net):
        setattr(each, name, value)
    assert not torch.equal(net(X), before)
    assert torch.equal(net(X), model(X))
    assert torch.equal(sngd.fold(net)(X), model(X))


def test_stride_and_padding_set_later_count():
    model = nn.Conv2d(2, 3, 3)
    net = sngd.reconstruct(model)
    images = torch.randn(2, 2, 7, 6)
    for each in (model, net):
        each.stride, each.padding = (2, 1), (1, 0)
    torch.testing.assert_close(net(images), model(images))


class Switching(Layer):
    """Becomes data dependent when its switch is set."""

    switch = False

    def forward(self, x):
        if self.switch and x.sum() > 0:
            return x
        return self.linear(x)


def test_an_attribute_that_makes_the_forward_uncapturable_lets_it_run_as_it_is():
    net, model = sngd.reconstruct(Switching()), Switching()
    model.load_state_dict(sngd.fold(net).state_dict())
    for switch in (True, False):
        net.switch = model.switch = switch
        assert (sngd.graph(net) == {}) == switch
        torch.testing.assert_close(net(-X), model(-X))
    assert sngd.fisher_layers(net)["weight"].rows_seen == 2 * len(X)


class ReadsChild(nn.Module):
    """Asks its child for the mode."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return F.dropout(F.linear(x, self.weight), self.drop.p, self.drop.training)


def test_the_mode_of_a_child_is_not_frozen():
    model = ReadsChild()
    model.drop.eval()
    assert "differs between train and eval" in reason(model)
    assert not model.drop.training
    assert model.training


class EveryChild(nn.Module):
    """Calls whatever children it has."""

    def __init__(self):
        super().__init__()
        self.act = nn.Tanh()
        self.weight = nn.Parameter(torch.randn(3, 5))

    def forward(self, x):
        for child in self.children():
            x = child(x)
        return F.linear(x, self.weight)


def test_the_fisher_layer_is_no_child_of_the_forward():
    model = EveryChild()
    net = trained(model)
    loaded = pickle.loads(pickle.dumps(net))
    assert apart(net, loaded) == 0.0
    net.act = nn.ReLU()
    torch.testing.assert_close(net(batch()), F.linear(batch().relu(), net.weight))


def test_the_profiler_of_the_user_stays():
    profiler = cProfile.Profile()
    profiler.enable()
    sngd.explain(Tempered())
    profiler.disable()
    names = {entry.code.co_name for entry in profiler.getstats() if hasattr(entry.code, "co_name")}
    assert "explain" in names
    assert sys.getprofile() is None


def test_the_profiler_stays_when_a_forward_is_refused():
    seen = []

    def profile(frame, event, argument):
        seen.append(event)

    sys.setprofile(profile)
    try:
        plan = sngd.explain(ReadsChild())
        still = sys.getprofile()
    finally:
        sys.setprofile(None)
    assert still is profile
    assert "train and eval" in plan.sites[0].note
    assert seen


class Taken(Layer):
    """Has an attribute with a name that a reconstructed module needs."""

    def __init__(self, name):
        super().__init__()
        setattr(self, name, 1)

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize("name", ["program", "names", "observing", "weight_prime", "bias_fisher"])
def test_a_taken_name_is_a_reason(name):
    model = Taken(name)
    assert f"attribute {name!r}" in reason(model)
    assert getattr(sngd.reconstruct(model), name) == 1


def test_a_needed_name_cannot_be_set_later():
    net = sngd.reconstruct(Tempered())
    with pytest.raises(SngdError, match="'program'"):
        net.program = 1
