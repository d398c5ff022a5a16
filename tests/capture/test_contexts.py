"""Contexts, decorators and functions with a backward of their own keep their meaning."""

import functools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import sngd_compile as sngd
from capture import Layer, assert_same, behaviour, layer, reason

pytestmark = pytest.mark.usefixtures("float64")
X = torch.ones(2, 3, dtype=torch.float64)


class Reversed(torch.autograd.Function):
    """The identity with a gradient turned around."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -3 * gradient


def constant_mean(x):
    with torch.no_grad():
        return x.mean()


@torch.no_grad()
def decorated_mean(x):
    return x.mean()


def frozen_part(self, x):
    with torch.no_grad():
        scale = self.linear(x).mean()
    return self.linear(x) * scale


def frozen_in_a_helper(self, x):
    y = self.linear(x)
    return y * constant_mean(y)


def frozen_by_a_decorated_helper(self, x):
    y = self.linear(x)
    return y * decorated_mean(y)


def frozen_by_a_switch(self, x):
    torch.set_grad_enabled(False)
    y = self.linear(x)
    torch.set_grad_enabled(True)
    return y + self.linear(x)


def autocast_part(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.linear(x.float())


def gradient_reversal(self, x):
    return Reversed.apply(self.linear(x))


def checkpointed(self, x):
    return checkpoint(self.linear, x, use_reentrant=False)


def checkpointed_reentrant(self, x):
    return checkpoint(self.linear, x, use_reentrant=True)


def scripting(test):
    """Scripting is deprecated, by another kind of warning from torch 2.14 on."""
    for kind in ("DeprecationWarning", "FutureWarning"):
        test = pytest.mark.filterwarnings(f"ignore:`torch.jit.*` is deprecated:{kind}")(test)
    return test


CONTEXTS = [
    (frozen_part, "`with`"),
    (frozen_in_a_helper, "`with`"),
    (frozen_by_a_decorated_helper, "torch.utils._contextlib"),
    (frozen_by_a_switch, "torch.autograd.grad_mode"),
    (autocast_part, "`with`"),
    (gradient_reversal, "torch.autograd.function"),
    (checkpointed, "torch."),
]


@pytest.mark.parametrize(("forward", "why"), CONTEXTS)
def test_contexts_are_not_captured(forward, why):
    torch.manual_seed(0)
    model = layer(forward)
    if forward is autocast_part:
        model.float()
    assert why in reason(model)
    assert_same(model, X)


def test_reentrant_checkpointing_inside_a_forward_stays():
    model = layer(checkpointed_reentrant)
    assert "torch." in reason(model)
    net = sngd.reconstruct(model)
    x = X.clone().requires_grad_()
    assert all(map(torch.equal, behaviour(net, x), behaviour(model, x)))


def logging_wrapper(log):
    def decorate(forward):
        @functools.wraps(forward)
        def wrapper(*args, **kwargs):
            log.append(1)
            return forward(*args, **kwargs)

        return wrapper

    return decorate


def doubling(forward):
    @functools.wraps(forward)
    def wrapper(*args, **kwargs):
        return 2 * forward(*args, **kwargs)

    return wrapper


def bare_wrapper(forward):
    def wrapper(self, *args, **kwargs):
        return 2 * forward(self, *args, **kwargs)

    return wrapper


def plain(self, x):
    return self.linear(x)


@pytest.mark.parametrize(
    "decorate",
    [
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=False),
        logging_wrapper([]),
        bare_wrapper,
        torch.compiler.disable,
    ],
    ids=["no_grad", "inference_mode", "autocast", "logging", "bare", "no_compile"],
)
def test_decorators_keep_their_meaning(decorate):
    model = layer(decorate(plain))
    reason(model)
    net = sngd.reconstruct(model)
    assert net(X).requires_grad == model(X).requires_grad
    assert torch.equal(net(X), model(X))


def test_a_decorator_that_only_computes_is_captured():
    model = layer(doubling(plain))
    assert len(sngd.explain(model).sites) == 1
    assert_same(model, X)


def test_forwards_that_are_no_plain_functions():
    method = type("Method", (Layer,), {"forward": functools.partialmethod(plain)})()
    assert "cannot be captured" in reason(method)
    assert_same(method, X)
    builtin = type("Builtin", (Layer,), {"forward": functools.partial(torch.relu)})()
    assert "not a Python function" in reason(builtin)
    assert_same(builtin, X)
    replaced = nn.Linear(3, 3)
    replaced.forward = lambda x: 5 * nn.functional.linear(x, replaced.weight, replaced.bias)
    assert "replaced on the instance" in reason(replaced)


@scripting
def test_scripted_and_traced_modules_are_left():
    for made in (torch.jit.script(nn.Linear(3, 3)), torch.jit.trace(nn.Linear(3, 3), X)):
        assert "scripted" in reason(made)
        assert sngd.fisher_layers(made) == {}
        model = nn.Sequential(made, nn.Linear(3, 2)).eval()
        expected = model(X)
        net = sngd.reconstruct(model, inplace=True)
        assert net[0] is made
        assert not made.training
        assert torch.equal(net(X), expected)
        assert [site.name for site in sngd.explain(net).sites] == ["1.weight"]


def calls_a_script(self, x):
    return SCRIPTED(self.linear(x))


def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


SCRIPTED = None


@scripting
def test_calling_a_scripted_function_keeps_its_meaning(monkeypatch):
    monkeypatch.setitem(globals(), "SCRIPTED", torch.jit.script(doubled))
    assert_same(layer(calls_a_script), X)
