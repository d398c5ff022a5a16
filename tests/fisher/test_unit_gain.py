"""Roots of a gain of one: `|R|^2 = D`, and all that is said of a root stays true of it."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import sngd_compile as sngd
from api import FISHERS, apart, batch, mlp, sgd, train

pytestmark = pytest.mark.usefixtures("float64")
every_fisher = pytest.mark.parametrize("kind", FISHERS)


def wide() -> nn.Sequential:
    """A network with a layer that a sketch of two columns is too narrow for."""
    return nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3, bias=False))


def trained(kind: str, unit_gain: bool = True) -> nn.Module:
    """Return a network with roots of its own."""
    torch.manual_seed(0)
    free = {"trust_radius": None, "trust_share": None}
    net = sngd.reconstruct(wide(), FISHERS[kind].replace(unit_gain=unit_gain, **free))
    train(net, torch.optim.SGD(net.parameters(), lr=1e-4))
    return net


@every_fisher
def test_the_squares_of_a_root_add_up_to_its_size(kind):
    for layer in sngd.fisher_layers(trained(kind)).values():
        norm = float(layer.root_buffers.squared_norm().mean())
        assert norm == pytest.approx(layer.size, rel=1e-12)
        assert layer.gain != 1.0


@every_fisher
def test_the_metric_is_the_one_without_times_the_gain(kind):
    torch.manual_seed(0)
    net = sngd.reconstruct(wide(), FISHERS[kind])
    # With the identity as root both nets see the same: then each gets its first root.
    scaled = sngd.reconstruct(wide(), FISHERS[kind].replace(unit_gain=True))
    scaled.load_state_dict(copy.deepcopy(net.state_dict()))
    for each in (net, scaled):
        each(batch()).square().mean().backward()
        sngd.refresh_(each)
    pairs = zip(sngd.fisher_layers(net).values(), sngd.fisher_layers(scaled).values(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(other.metric(), other.gain * one.metric(), rtol=1e-10, atol=0)
        assert other.damping == pytest.approx(other.gain * one.damping, rel=1e-12)
        assert other.scale == pytest.approx(other.gain * one.scale, rel=1e-12)
    assert apart(net, scaled) < 1e-12


@every_fisher
def test_what_is_logged_of_a_root_is_what_it_was_without_a_gain(kind):
    torch.manual_seed(0)
    found = []
    for unit_gain in (False, True):
        net = sngd.reconstruct(wide(), FISHERS[kind].replace(unit_gain=unit_gain))
        torch.manual_seed(1)
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        net(batch()).square().mean().backward()
        sngd.refresh_(net)
        found.append(sngd.metrics(net))
    for name, value in found[0].items():
        if name.split("/")[1] in ("effective_rank", "condition", "residual", "relative_damping"):
            assert found[1][name] == pytest.approx(value, rel=1e-8, abs=1e-10), name


def test_the_gain_is_in_files_and_one_that_cannot_be_is_refused():
    net = trained("shared")
    state = copy.deepcopy(net.state_dict())
    other = sngd.reconstruct(wide(), FISHERS["shared"].replace(unit_gain=True))
    other.load_state_dict(state)
    gains = [[layer.gain for layer in sngd.fisher_layers(n).values()] for n in (net, other)]
    assert gains[0] == gains[1]
    assert apart(net, other) == 0.0


def test_a_root_that_is_refused_leaves_the_gain(monkeypatch):
    net = trained("shared")
    gains = [layer.gain for layer in sngd.fisher_layers(net).values()]
    monkeypatch.setattr("sngd_compile.training.refresh._Attempt.is_kept", lambda *args: False)
    with pytest.warns(sngd.SngdWarning, match="keep"):
        train(net, sgd(net), steps=2)
    assert [layer.gain for layer in sngd.fisher_layers(net).values()] == gains


def test_an_average_has_the_gain_of_what_it_follows():
    net = trained("shared")
    average = AveragedModel(net)
    for _ in range(3):
        train(net, sgd(net), steps=1)
        average.update_parameters(net)
    pairs = zip(sngd.fisher_layers(net).values(), sngd.fisher_layers(average).values(), strict=True)
    for one, other in pairs:
        assert other.gain == one.gain
        torch.testing.assert_close(other.metric(), one.metric(), rtol=1e-12, atol=0)


def test_it_is_a_choice():
    with pytest.raises(sngd.ConfigError, match=r"unit_gain .*True or False"):
        sngd.Config(unit_gain=1)
    assert sngd.Config.muon().unit_gain
    assert [layer.gain for layer in sngd.fisher_layers(sngd.reconstruct(mlp())).values()] == [1, 1]
