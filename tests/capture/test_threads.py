"""While one thread captures, others notice nothing: no class, module or generator is changed."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sngd_compile as sngd
from capture import behaviour
from sngd_compile.capture import tracer
from sngd_compile.modules import reconstructed

pytestmark = pytest.mark.usefixtures("float64")
X = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)


class Own(nn.Module):
    """Has a weight of its own beside a child, and reads the child's."""

    def __init__(self):
        super().__init__()
        self.linear, self.weight = nn.Linear(3, 3), nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        return F.linear(self.linear(x), self.weight) * self.linear.weight.sum()


class OfASize(Own):
    """Gives a size of its input to a function of math."""

    def forward(self, x):
        return F.linear(self.linear(x), self.weight) / math.sqrt(x.shape[-1])


class Drawing(Own):
    """Draws."""

    def forward(self, x):
        return F.linear(self.linear(x), self.weight) + torch.rand(3)


@pytest.fixture
def beside(monkeypatch):
    """Let another thread look around at every node that a trace makes; return what it saw."""
    plain = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2))
    methods = nn.Module.__call__, nn.Module.__getattr__, nn.Module.forward
    right = plain.eval()(X)
    seen = []
    original = tracer.LocalTracer.create_node

    def look():
        seen.append((nn.Module.__call__, nn.Module.__getattr__, nn.Module.forward) == methods)
        seen.append(torch.equal(plain(X), right))
        seen.append(math.sqrt(9.0) == 3.0 and type(plain[0].weight) is nn.Parameter)
        torch.rand(2)

    def create_node(self, *args, **kwargs):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return original(self, *args, **kwargs)

    # As one of torch's own: what the test does here is no part of the forward.
    code, cells, names = create_node.__code__, create_node.__closure__, {"__name__": "torch.test"}
    of_torch = FunctionType(code, globals() | names, "create_node", None, cells)
    monkeypatch.setattr(tracer.LocalTracer, "create_node", of_torch)
    return seen


@pytest.mark.parametrize("kind", [Own, OfASize])
def test_another_thread_sees_no_trace(kind, beside):
    net = sngd.reconstruct(kind())
    assert len(beside) > 9
    assert all(beside)
    assert "" in sngd.graph(net)  # that it drew is no part of this forward


def test_own_draws_are_refused_and_those_of_others_stay(beside):
    torch.manual_seed(5)
    drawn = torch.rand(2)
    torch.manual_seed(5)
    assert "draws random numbers" in str(sngd.explain(Drawing()))
    after = torch.rand(2)  # the other thread took numbers, and nobody gave them back
    assert beside
    assert not torch.equal(after, drawn)


def test_many_threads_reconstruct():
    models = [kind() for kind in [Own, OfASize] * 6]
    with ThreadPoolExecutor(4) as pool:
        nets = list(pool.map(sngd.reconstruct, models))
    for net, model in zip(nets, models, strict=True):
        assert "" in sngd.graph(net)
        torch.testing.assert_close(net(X), model(X), rtol=0, atol=0)
    assert math.sqrt.__module__ == "math"
    assert not hasattr(math.sqrt, "__wrapped__")


class Scaled(Own):
    """Reads attributes of its own, of its class, and one that may be absent."""

    offset = 0.5

    def __init__(self):
        super().__init__()
        self.factor, self.heads = 2.0, [self.linear]
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x):
        for head in self.heads:
            x = head(x)
        x = F.linear(x, self.weight)
        return x * self.factor + self.offset + self.shift + getattr(self, "extra", 0.0)


class Branching(Scaled):
    """Has no graph."""

    def forward(self, x):
        return super().forward(x) if x.sum() > self.factor else F.linear(x, self.weight)


def assert_same(net, model):
    """Demand equal outputs and gradients, in both modes."""
    torch.testing.assert_close(behaviour(net, X), behaviour(model, X))


@pytest.fixture
def captures(monkeypatch):
    """Count how often a forward is captured again."""
    made = []
    original = reconstructed.match_again
    monkeypatch.setattr(
        reconstructed, "match_again", lambda *args: made.append(1) or original(*args)
    )
    return made


@pytest.mark.parametrize("kind", [Scaled, Branching])
def test_only_what_a_forward_reads_has_it_captured_again(kind, captures):
    model = kind()
    net = sngd.reconstruct(model)
    for step in range(5):
        net.step_number, net.name_of_run = step, "a"
        net.shift = model.shift = torch.full((3,), float(step))
        net.train(step % 2 == 0)
    assert not captures
    assert net.step_number == 4
    assert_same(net, model)
    for name, value in (("factor", 3.0), ("offset", -1.0), ("extra", 7.0)):
        setattr(net, name, value)
        setattr(model, name, value)
        assert_same(net, model)
    del net.extra, model.extra
    assert_same(net, model)
    assert captures
