"""Scalers and compiled optimizers step compiled models as a plain optimizer does."""

import pytest
import torch
import torch.nn.functional as F

import sngd_compile as sngd
from backend.compiled import SETTING, apart, compiled, mlp, pair, sample, train
from sngd_compile import SngdWarning
from sngd_compile.backend import compiled_models

pytestmark = pytest.mark.usefixtures("float64", "fresh")


def networks(kind: str):
    """Return a plain-weight view of the trained model, the compiled one, and an eager twin."""
    model, twin = pair(mlp())
    if kind == "backend":
        return lambda: model, compiled(model, "aot_eager"), twin
    net = sngd.reconstruct(model, SETTING)
    return lambda: sngd.fold(net), torch.compile(net, backend="aot_eager"), twin


@pytest.mark.parametrize("kind", ["backend", "reconstruct"])
def test_a_compiled_optimizer_refreshes_in_time(kind):
    plain, net, twin = networks(kind)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    compiled_step = torch.compile(optimizer.step, backend="aot_eager")
    for step in range(9):
        inputs, labels = sample((5,), step)
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), labels).backward()
        compiled_step()
    train(twin, lambda step: [sample((5,), step)], steps=9, momentum=0.9)
    assert apart(plain(), twin) < 1e-10


@pytest.mark.parametrize("kind", ["backend", "reconstruct"])
def test_a_scaler_steps_as_ever(kind):
    plain, net, twin = networks(kind)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu")
    for step in range(9):
        inputs, labels = sample((5,), step)
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(net(inputs), labels)).backward()
        scaler.step(optimizer)
        scaler.update()
    train(twin, lambda step: [sample((5,), step)], steps=9, momentum=0.9)
    assert apart(plain(), twin) < 1e-10


def test_a_gradient_that_is_not_finite_reaches_no_weight():
    model = mlp()
    net = compiled(model)
    train(net, lambda step: [sample((5,), step)], steps=2)
    before = [p.clone() for p in model.parameters()]
    (net(sample((5,), 0)[0]).sum() * float("inf")).backward()
    with pytest.warns(SngdWarning, match="not finite"):
        torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert all(map(torch.equal, before, model.parameters()))


def test_a_second_optimizer_repeats_no_warning():
    model = mlp()
    model.forward = torch._dynamo.disable(model.forward)
    net = compiled(model)
    with pytest.warns(SngdWarning, match="4 parameters"):
        train(net, lambda step: [sample((5,), step)], steps=1)
    train(net, lambda step: [sample((5,), step)], steps=1)


def test_no_module_is_looked_for_where_all_weights_are_reconstructed(monkeypatch):
    """The walk through every object would make each new optimizer's first step a slow one."""
    train(compiled(mlp()), lambda step: [sample((5,), step)], steps=1)
    looked = []
    monkeypatch.setattr(compiled_models, "modules_alive", lambda: looked.append(1) or [])
    train(sngd.reconstruct(mlp(), SETTING), lambda step: [sample((5,), step)], steps=2)
    assert looked == []
    train(mlp(), lambda step: [sample((5,), step)], steps=2)
    assert looked == [1]


def test_after_a_compiled_model_a_damaged_network_stops_no_other_optimizer():
    train(compiled(mlp()), lambda step: [sample((5,), step)], steps=1)
    damaged = sngd.reconstruct(mlp(), SETTING)
    parameters = damaged[0].__dict__.pop("_parameters")
    net = sngd.reconstruct(mlp(), SETTING)
    before = [p.clone() for p in net.parameters()]
    train(net, lambda step: [sample((5,), step)], steps=2)
    assert not any(map(torch.equal, before, net.parameters()))
    damaged[0].__dict__["_parameters"] = parameters
