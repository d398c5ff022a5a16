"""A forward that does more than compute is not captured: a graph would do it once, or never."""

import logging
import time
import warnings
from collections import Counter, deque
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sngd_compile as sngd
from capture import Layer, assert_same, layer, reason

pytestmark = pytest.mark.usefixtures("float64")

X = torch.ones(2, 3, dtype=torch.float64)
SEEN: list[int] = []
FEATURES: dict[str, object] = {}
CALLS = 0


class Statistics:
    calls = 0


def said(x):
    print("hello")
    return x


def logged(x):
    logging.getLogger("capture").debug("called")
    return x


def count_on_self(self, x):
    self.calls = getattr(self, "calls", 0) + 1
    return self.linear(x)


def count_globally(self, x):
    global CALLS
    CALLS += 1
    return self.linear(x)


def count_on_a_class(self, x):
    Statistics.calls += 1
    return self.linear(x)


def append_globally(self, x):
    SEEN.append(1)
    return self.linear(x)


def store_globally(self, x):
    FEATURES.update(calls=len(FEATURES))
    return self.linear(x)


def print_in_a_helper(self, x):
    return self.linear(said(x))


def log_in_a_helper(self, x):
    return self.linear(logged(x))


def warn(self, x):
    warnings.warn("careful", stacklevel=1)
    return self.linear(x)


def clock(self, x):
    return self.linear(x) * (1 if time.perf_counter() > 0 else 2)


def clip_the_weight(self, x):
    self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.5)
    return self.linear(x)


def set_with_a_function(self, x):
    setattr(self, "last", 1)  # noqa: B010
    return self.linear(x)


def mark_the_activation(self, x):
    y = self.linear(x)
    y.seen = True
    return y


EFFECTS = [
    (count_on_self, ".calls"),
    (count_globally, "the global CALLS"),
    (count_on_a_class, ".calls"),
    (append_globally, "SEEN"),
    (store_globally, "FEATURES"),
    (print_in_a_helper, "print()"),
    (log_in_a_helper, "logging"),
    (warn, "warn()"),
    (clock, "time"),
    (clip_the_weight, ".data"),
    (set_with_a_function, "setattr()"),
    (mark_the_activation, ".seen"),
]


@pytest.mark.parametrize(("forward", "what"), EFFECTS)
@pytest.mark.filterwarnings("ignore:careful")
def test_side_effects_are_not_captured(forward, what, capsys):
    model = layer(forward)
    assert what in reason(model)
    assert capsys.readouterr().out == ""
    assert_same(model, X)


def test_a_counter_goes_on_counting():
    net = sngd.reconstruct(layer(count_on_self))
    assert not hasattr(net, "calls")
    net(X)
    net(X)
    assert net.calls == 2


class Keeping(Layer):
    """Holds containers of every kind; `keep` says how one changes."""

    shared: list[int] = []  # noqa: RUF012

    def __init__(self, keep):
        super().__init__()
        self.items, self.table, self.recent, self.tally = [0], {"calls": [0]}, deque([0]), Counter()
        self.state = SimpleNamespace(history=[0])
        self.keep = keep

    def forward(self, x):
        self.keep(self)
        return self.linear(x)


CHANGES = {
    "list": lambda self: self.items.append(1),
    "list in a dict": lambda self: self.table["calls"].append(1),
    "dict": lambda self: self.table.update(more=1),
    "deque": lambda self: self.recent.append(1),
    "counter": lambda self: self.tally.update(["a"]),
    "object": lambda self: self.state.history.append(1),
    "list of the class": lambda self: self.shared.append(1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_containers_that_change_are_seen(change):
    model = Keeping(CHANGES[change])
    assert "its forward changes" in reason(model)


@pytest.mark.parametrize("change", ["list", "list in a dict", "dict", "deque"])
def test_tracing_leaves_the_containers_of_the_model(change):
    model = Keeping(CHANGES[change])
    before = repr([model.items, model.table, model.recent])
    sngd.explain(model)
    assert repr([model.items, model.table, model.recent]) == before


def closure_counter():
    calls = 0

    def forward(self, x):
        nonlocal calls
        calls += 1
        return self.linear(x)

    return forward


def closure_list():
    calls = []

    def forward(self, x):
        calls.append(1)
        return self.linear(x)

    return forward


@pytest.mark.parametrize("make", [closure_counter, closure_list])
def test_closures_that_change_are_seen(make):
    assert "changes calls" in reason(layer(make()))


class Whitening(nn.Module):
    """A running mean, updated in one of several ways, and one weight."""

    def __init__(self, update):
        super().__init__()
        self.update = update
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        getattr(self, self.update)(x)
        return F.linear(x - self.mean, self.weight)

    def in_place(self, x):
        self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)

    def assigned(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)

    def without_grad(self, x):
        with torch.no_grad():
            self.mean.copy_(x.mean(0))


@pytest.mark.parametrize("update", ["in_place", "assigned", "without_grad"])
def test_running_buffers_go_on_running(update):
    model = Whitening(update)
    net = sngd.reconstruct(model)
    for scale in (1.0, 2.0, 3.0):
        for each in (model, net):
            each(scale * X).sum().backward()
    assert model.mean.abs().sum() > 0
    torch.testing.assert_close(net.mean, model.mean)


def test_a_buffer_updated_in_place_may_be_captured():
    assert [site.name for site in sngd.explain(Whitening("in_place")).sites] == ["weight"]
