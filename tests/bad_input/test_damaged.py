"""Networks that other code damaged: they say so when used or stepped, and stop nobody else."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import sngd_compile as sngd
from api import EVERY_STEP, apart, batch, mlp, sgd, train, trained
from sngd_compile import ModelError, SngdWarning
from sngd_compile.training.optimizer_hooks import register_owner, steps_reconstructed_only

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of the old weight_norm


class Halved(nn.Module):
    """A parametrization that changes what it is given to start from."""

    def forward(self, original):
        return original / 2

    def right_inverse(self, weight):
        return 2 * weight


SURGERY = {
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "parametrizations.weight_norm": parametrizations.weight_norm,
    "parametrizations.spectral_norm": parametrizations.spectral_norm,
    "parametrizations.orthogonal": parametrizations.orthogonal,
    "parametrize": lambda layer: parametrize.register_parametrization(layer, "weight", Halved()),
    "parametrize bias": lambda layer: parametrize.register_parametrization(layer, "bias", Halved()),
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "prune random": lambda layer: prune.random_structured(layer, "weight", 0.5, 0),
    "prune globally": lambda layer: prune.global_unstructured(
        [(layer, "weight")], prune.L1Unstructured, amount=0.5
    ),
    "prune nothing": lambda layer: prune.identity(layer, "bias"),
    "custom mask": lambda layer: prune.custom_from_mask(
        layer, "weight", torch.zeros(layer.out_features, layer.in_features)
    ),
}


def take_away(layer):
    del layer._parameters["weight"]


def take_bias_away(layer):
    del layer._parameters["bias"]


def set_to_none(layer):
    layer._parameters["weight"] = None


def set_bias_to_none(layer):
    layer._parameters["bias"] = None


def reshape(layer):
    layer._parameters["weight"] = nn.Parameter(torch.zeros(2, 2))


def reshape_bias(layer):
    layer._parameters["bias"] = nn.Parameter(torch.zeros(9))


def empty(layer):
    layer._parameters.clear()


def take_fisher_away(layer):
    del layer._modules["weight_fisher"]


def put_something_in_place_of_fisher(layer):
    layer._modules["weight_fisher"] = nn.Identity()


def change_class(layer):
    layer.__class__ = nn.Linear


BY_HAND = (
    take_away,
    take_bias_away,
    set_to_none,
    set_bias_to_none,
    reshape,
    reshape_bias,
    empty,
    take_fisher_away,
    put_something_in_place_of_fisher,
    change_class,
)


def others_step():
    """Step a plain model and a reconstructed one, of optimizers made before and after."""
    train(mlp(), steps=2)
    train(sngd.reconstruct(mlp(), EVERY_STEP), steps=2)


@pytest.mark.parametrize("surgery", SURGERY.values(), ids=SURGERY)
def test_what_replaces_parameters_is_refused_before_anything_changes(surgery):
    net = trained()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ModelError, match=r"fold") as raised:
        surgery(net[0])
    assert "weight" in str(raised.value) or "bias" in str(raised.value)
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not net[0]._forward_pre_hooks
    others_step()
    train(net)


@pytest.mark.parametrize("surgery", SURGERY.values(), ids=SURGERY)
def test_on_the_folded_network_it_works(surgery):
    net = sngd.fold(trained())
    surgery(net[0])
    assert net(batch()).isfinite().all()


@pytest.mark.parametrize("damage", BY_HAND, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("has_stepped", [False, True])
def test_a_damaged_network_stops_its_own_optimizer_only(damage, has_stepped):
    net, plain, other = mlp(), mlp(), sngd.reconstruct(mlp(), EVERY_STEP)
    net = sngd.reconstruct(net, EVERY_STEP)
    optimizers = [sgd(net), sgd(plain), sgd(other)]
    for optimizer, model in zip(optimizers, (net, plain, other), strict=True):
        train(model, optimizer, steps=2 * has_stepped)
    gradients = [torch.ones_like(p) for p in net.parameters()]
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        parameter.grad = gradient
    layer, held = net[0], [*net.parameters()]
    before = [parameter.clone() for parameter in held]
    damage(layer)
    train(plain, optimizers[1], steps=2)
    train(other, optimizers[2], steps=2)
    others_step()
    with pytest.raises(ModelError, match=r"0\.weight: other code .*sngd\.fold"):
        optimizers[0].step()
    assert all(map(torch.equal, held, before))


@pytest.mark.parametrize(
    "damage", [d for d in BY_HAND if d is not change_class], ids=lambda damage: damage.__name__
)
def test_a_damaged_network_says_so_when_it_is_used(damage):
    net = trained()
    damage(net[0])
    uses = [lambda: net(batch()), lambda: sngd.refresh_(net), lambda: sngd.fold_(net)]
    for use in uses:
        with pytest.raises(ModelError, match=r"weight: other code .*sngd\.fold"):
            use()


def test_a_copy_that_follows_and_is_damaged_stops_nobody():
    net = trained()
    average = sngd.follow(copy.deepcopy(net), net)
    take_away(average[0])
    with pytest.warns(SngdWarning, match=r"0\.weight: it no longer follows .* other code took"):
        train(net)
    train(net)
    assert apart(net, sngd.fold(net)) < 1e-4


def test_a_module_that_is_not_even_one_any_more_stops_nobody():
    net = trained()
    for name in ("_parameters", "_modules", "_buffers"):
        del net[0].__dict__[name]
    others_step()
    assert not steps_reconstructed_only(torch.optim.SGD(mlp().parameters(), lr=1.0))


def test_an_owner_of_sites_that_fails_stops_nobody():
    class Broken:
        def local_sites(self):
            raise ZeroDivisionError

    broken = Broken()
    register_owner(broken)
    others_step()
    del broken


def test_a_network_whose_parameter_is_given_back_goes_on():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    optimizer = sgd(net)
    train(net, optimizer)
    kept = net[0]._parameters.pop("weight")
    with pytest.raises(ModelError):
        net(batch())
    others_step()
    net[0]._parameters["weight"] = kept
    train(net, optimizer)
    assert apart(net, sngd.fold(net)) < 1e-4


def test_one_parameter_with_two_local_fishers_is_refused():
    net = sngd.reconstruct(nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)), EVERY_STEP)
    optimizer = train(net)
    net[2]._parameters["weight"] = net[0]._parameters["weight"]
    with pytest.raises(sngd.ModelError, match=r"0.weight and 2.weight: other code gave both"):
        train(net, optimizer)
    other = sngd.reconstruct(mlp(), EVERY_STEP)
    train(other)
