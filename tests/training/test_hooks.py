"""What surrounds a step: gradient scalers, several optimizers, folding in between, lifetimes."""

import copy
import gc
import math
import weakref

import pytest
import torch
from torch.optim import SGD

import sngd_compile as sngd
from api import EVERY_STEP, apart, batch, mlp, sgd, steps_of, train, trained

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_scaler_skips_does_not_count(fused):
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    optimizer = SGD(net.parameters(), lr=0.02, momentum=0.9, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    # A good step first: skipped on its first step, torch's fused SGD keeps what malloc left it.
    good, bad = (1.0, 4.0, 1), (float("inf"), 2.0, 1)
    for factor, scale, steps in (good, bad, (1.0, 2.0, 2), (float("nan"), 1.0, 2)):
        before = copy.deepcopy(net.state_dict())
        optimizer.zero_grad()
        scaler.scale(net(batch()).square().mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == scale
        assert steps_of(net) == [steps, steps]
        is_skipped = not math.isfinite(factor)
        assert torch.equal(net[0].weight_prime, before["0.weight"]) == is_skipped
    assert all(value.isfinite().all() for value in net.state_dict().values())


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_changes_no_trajectory(fused):
    net, expected = (sngd.reconstruct(mlp_of(3), EVERY_STEP) for _ in range(2))
    optimizer = SGD(net.parameters(), lr=0.03, momentum=0.9, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(5):
        optimizer.zero_grad()
        scaler.scale(net(batch(step)).square().mean()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    train(expected)
    assert apart(net, expected) < 1e-14


def mlp_of(seed):
    torch.manual_seed(seed)
    return mlp()


def test_momentum_moves_with_the_coordinates():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    optimizer = train(net, steps=3)
    pair = [optimizer.state[p]["momentum_buffer"] for p in (net[0].weight_prime, net[0].bias_prime)]

    def in_w():
        joined = torch.cat([pair[0], pair[1][:, None]], 1)
        return joined @ sngd.fisher_layers(net)["0.weight"].root

    before, root = in_w(), sngd.fisher_layers(net)["0.weight"].root
    net(batch(77))
    sngd.refresh_(net)
    assert not torch.allclose(sngd.fisher_layers(net)["0.weight"].root, root)
    torch.testing.assert_close(in_w(), before)


def with_the_state_of(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Make another optimizer of the same parameters, as one whose settings shall be others."""
    other = SGD([p for group in optimizer.param_groups for p in group["params"]])
    other.load_state_dict(optimizer.state_dict())
    return other


class Remembering(SGD):
    """Keeps the parameter and its gradient in its state, as they are."""

    def step(self, closure=None):
        """Keep both, and step."""
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] |= {"last": parameter.grad, "slow": parameter.detach()}
        return super().step(closure)


def two_trained(*kinds: type[SGD]) -> tuple[list, list]:
    """Train a network with each kind of optimizer for three steps, all on one path."""
    nets = [sngd.reconstruct(mlp_of(3), EVERY_STEP) for _ in kinds]
    optimizers = [
        kind(net.parameters(), lr=1e-3, momentum=0.9) for kind, net in zip(kinds, nets, strict=True)
    ]
    for net, optimizer in zip(nets, optimizers, strict=True):
        train(net, optimizer, steps=3)
    return nets, optimizers


def test_momentum_that_two_optimizers_share_moves_once():
    (net, other), optimizers = two_trained(SGD, SGD)
    optimizers.append(with_the_state_of(optimizers[1]))  # the first one stays alive
    train(net, optimizers[0], steps=3, first=3)
    train(other, optimizers[2], steps=3, first=3)
    assert apart(net, other) == 0


def test_a_state_that_is_the_parameter_or_its_gradient_moves_with_that():
    (net, other), optimizers = two_trained(SGD, Remembering)
    train(net, optimizers[0], steps=3, first=3)
    train(other, optimizers[1], steps=3, first=3)
    assert apart(net, other) == 0


def test_optimizer_state_loaded_later_moves_too():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    optimizer = train(net, steps=4)
    other = copy.deepcopy(net)
    fresh = sgd(other)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, optimizer, first=4)
    train(other, fresh, first=4)
    assert all(map(torch.equal, net.state_dict().values(), other.state_dict().values()))


def test_folding_in_place_goes_on_as_plain_sgd():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    optimizer = train(net)
    reference, momenta = sngd.fold(net), sgd(mlp())
    parameters = list(net.parameters())
    sngd.fold_(net)
    assert [id(p) for p in net.parameters()] == [id(p) for p in parameters]
    momenta = SGD(reference.parameters(), lr=0.03, momentum=0.9)
    momenta.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, optimizer)
    train(reference, momenta)
    assert apart(net, reference) < 1e-13


def test_observation_follows_the_schedule_of_steps_not_of_passes():
    config = EVERY_STEP.replace(observe_every=3, early_observations=(1,))
    net = sngd.reconstruct(mlp(), config)
    optimizer, seen = sgd(net), []
    for step in range(7):
        for _ in range(2):
            net(batch(step)).square().mean().backward()
        seen.append(sngd.fisher_layers(net)["0.weight"].rows_seen)
        optimizer.step()
    assert seen == [14, 28, 28, 42, 42, 42, 56]


def test_nothing_is_observed_without_training():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    with torch.no_grad():
        net(batch())
    with torch.inference_mode():
        net(batch())
    net.eval()
    net(batch()).sum().backward()
    assert [layer.rows_seen for layer in sngd.fisher_layers(net).values()] == [0, 0]
    net.train()
    net[0].eval()
    net(batch())
    assert [layer.rows_seen for layer in sngd.fisher_layers(net).values()] == [0, 7]


def test_networks_and_optimizers_are_freed():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    optimizer = train(net)
    folded = sngd.fold(net)
    kept = [weakref.ref(each) for each in (net, net[0], net[0].weight_fisher, optimizer)]
    del net, optimizer
    gc.collect()
    assert [reference() for reference in kept] == [None] * 4
    assert folded(batch()).shape == (7, 3)


def test_an_optimizer_outlives_its_network():
    net = trained()
    optimizer = sgd(net)
    train(net, optimizer)
    del net
    gc.collect()
    optimizer.step()


def test_frozen_later_stays_where_it_is():
    net = trained()
    net[0].requires_grad_(False)
    weight, bias = net[0].weight.clone(), net[0].bias.clone()
    train(net, sgd(net))
    torch.testing.assert_close((net[0].weight, net[0].bias), (weight, bias))
    assert steps_of(net) == [10, 10]


@pytest.mark.parametrize("kind", ["shared", "kronecker"])
def test_frozen_later_is_not_observed_until_it_is_thawed(kind):
    net = sngd.reconstruct(mlp(), EVERY_STEP.replace(fisher=kind))
    net[0].requires_grad_(False)
    train(net, SGD([p for p in net.parameters() if p.requires_grad], lr=0.02))
    first, last = sngd.fisher_layers(net).values()
    assert first.rows_seen == 0 < last.rows_seen
    assert first.output_side is None or first.output_side.is_empty
    net[0].requires_grad_(True)
    train(net, sgd(net))
    assert first.rows_seen > 0
    assert not first.unseen


def test_a_bias_frozen_before_stays():
    model = mlp()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("bias" not in name)
    net = sngd.reconstruct(model, EVERY_STEP)
    train(net)
    assert torch.equal(sngd.fold(net)[0].bias, model[0].bias)
