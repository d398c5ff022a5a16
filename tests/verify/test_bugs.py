"""A bug in the library makes the check of its law fail, by name, and no other."""

from importlib import import_module

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from sngd_compile.fisher import observe
from sngd_compile.fisher.kinds.base import FisherKind
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.roots.cholesky import CholeskyRoot
from sngd_compile.rules.convolution import Convolution
from sngd_compile.training import refresh
from verify import failing, made

# The functions of these names stand before the modules.
fold, reconstruct = (import_module(f"sngd_compile.{name}") for name in ("fold", "reconstruct"))


def wrapped(monkeypatch, owner, name, wrapper):
    """Let `wrapper(original, *args)` stand for a function."""
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: wrapper(original, *args))


def rewriting_changes_a_weight(monkeypatch):
    def rewritten(original, plan):
        with torch.no_grad():
            plan.modules[-1].module.weight.mul_(1.01)
        original(plan)

    wrapped(monkeypatch, reconstruct, "reconstruct_", rewritten)


def nothing_is_observed(monkeypatch):
    monkeypatch.setattr(observe, "_count_", lambda *args: None)


def rows_are_counted_twice(monkeypatch):
    wrapped(
        monkeypatch, observe, "_count_", lambda count, tally, ok, rows: count(tally, ok, 2 * rows)
    )


def another_factor_is_decomposed(monkeypatch):
    def damped(original, *args):
        return tuple((1.01 * matrix, damping) for matrix, damping in original(*args))

    wrapped(monkeypatch, FisherKind, "damped", damped)


def a_refresh_changes_weights(monkeypatch):
    def changed(original, steps, *others):
        refused = original(steps, *others)
        with torch.no_grad():
            for site, _ in steps:
                site.weight.mul_(1.01)
        return refused

    wrapped(monkeypatch, refresh, "_take_roots_", changed)


def gradients_move_like_weights(monkeypatch):
    monkeypatch.setattr(CholeskyRoot, "to_prime", CholeskyRoot.fold)


def folding_leaves_something(monkeypatch):
    def folded(original, module):
        original(module)
        module.register_buffer("left", torch.zeros(1))

    wrapped(monkeypatch, fold, "fold_module_", folded)


def steps_are_not_loaded(monkeypatch):
    monkeypatch.setattr(FisherLayer, "set_extra_state", lambda layer, state: None)


BUGS = {
    "reconstruct": rewriting_changes_a_weight,
    "observed": nothing_is_observed,
    "factor": rows_are_counted_twice,
    "root": another_factor_is_decomposed,
    "refresh": a_refresh_changes_weights,
    "natural step": gradients_move_like_weights,
    "fold": folding_leaves_something,
    "state": steps_are_not_loaded,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", BUGS)
def test_its_check_alone_fails(name, dtype, monkeypatch):
    model, batch = made("mlp", dtype)
    assert sngd.verify(model, batch).ok
    BUGS[name](monkeypatch)
    report = sngd.verify(model, batch)
    assert failing(report) == [name], str(report)
    assert not report.ok
    assert report.exit_code == 1
    text = str(report)
    assert "FAILS" in text
    assert "What to do: " in text
    (check,) = (check for check in report.checks if check.name == name)
    assert check.error > check.bound
    if name in ("observed", "factor", "root", "natural step", "state"):
        assert check.layer in ("0.weight", "3.weight")
        assert check.layer in text


def test_a_forward_that_does_not_repeat_itself(monkeypatch):
    calls = []

    class Counts(nn.Linear):
        def forward(self, x):
            calls.append(1)
            return super().forward(x) * len(calls)

    report = sngd.verify(nn.Sequential(Counts(5, 3)), torch.randn(4, 5))
    assert failing(report) == ["forward"]
    assert [check.holds for check in report.checks[1:]] == [None] * 8


def test_what_a_check_raises_is_its_failure(monkeypatch):
    def raises(*args):
        raise RuntimeError("no such root")

    model, batch = made("mlp")
    monkeypatch.setattr(FisherLayer, "metric", raises)
    report = sngd.verify(model, batch)
    assert failing(report) == ["root", "natural step"]
    assert "it raised RuntimeError: no such root" in str(report)


def test_a_bug_in_one_group_of_many_is_seen(monkeypatch):
    """Also in a layer that a test of the whole function would not notice."""

    model, batch = made("conv")
    net = sngd.reconstruct(model)
    assert sngd.verify(net, batch).ok

    def second_moment(original, rule, samples, geometry, bias, out):
        added = original(rule, samples, geometry, bias, out)
        if out.dim() == 3:
            out[1] *= 1.01
        return added

    wrapped(monkeypatch, Convolution, "second_moment", second_moment)
    report = sngd.verify(net, batch)
    assert failing(report) == ["factor"], str(report)
