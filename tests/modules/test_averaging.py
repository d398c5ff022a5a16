"""Averages of w' are averages of w, across refreshes: exponential and equal ones, targets."""

import copy
import gc
import itertools
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_multi_avg_fn,
    get_swa_avg_fn,
    get_swa_multi_avg_fn,
)

import sngd_compile as sngd
from api import EVERY_STEP, FISHERS, apart, batch, mlp, sgd, train, trained

pytestmark = pytest.mark.usefixtures("float64")

KEPT = 0.7


def weights_of(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return the ordinary weights of a network."""
    return sngd.fold(net).state_dict()


def lerp_(average: nn.Module, net: nn.Module) -> None:
    """Move an average towards a network as loops that people write do it."""
    for mean, parameter in zip(average.parameters(), net.parameters(), strict=True):
        mean.data.mul_(KEPT).add_(parameter.data, alpha=1 - KEPT)


def assert_average(
    net: nn.Module, average: nn.Module, update: Callable[[], None], steps: int = 9
) -> None:
    """Train, and compare an exponential average with that of the ordinary weights."""
    expected, optimizer = weights_of(average), sgd(net)
    for step in range(steps):
        train(net, optimizer, steps=1, first=step)
        update()
        for name, weight in weights_of(net).items():
            expected[name] = KEPT * expected[name] + (1 - KEPT) * weight
    for name, weight in weights_of(average).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("config", FISHERS.values(), ids=FISHERS)
def test_an_averaged_model_averages_weights(config, use_buffers):
    net = trained(config=config)
    ema = get_ema_multi_avg_fn(KEPT)
    averaged = AveragedModel(net, multi_avg_fn=ema, use_buffers=use_buffers)
    averaged.update_parameters(net)  # the first one copies
    assert_average(net, averaged.module, lambda: averaged.update_parameters(net))


@pytest.mark.parametrize(
    "rule", [{"avg_fn": get_swa_avg_fn()}, {"multi_avg_fn": get_swa_multi_avg_fn()}, {}]
)
def test_equal_weights_for_all_steps(rule):
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    averaged, optimizer, seen = AveragedModel(net, **rule), sgd(net), []
    for step in range(8):
        train(net, optimizer, steps=1, first=step)
        averaged.update_parameters(net)
        seen.append(weights_of(net))
    for name, weight in weights_of(averaged.module).items():
        mean = torch.stack([weights[name] for weights in seen]).mean(0)
        torch.testing.assert_close(weight, mean, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("config", FISHERS.values(), ids=FISHERS)
def test_a_copy_that_follows_from_the_start(config):
    net = sngd.reconstruct(mlp(), config)
    average = sngd.follow(copy.deepcopy(net), net)
    assert_average(net, average, lambda: lerp_(average, net))


def test_a_copy_that_follows_later_has_other_roots_and_is_the_same_function():
    net = trained()
    average = copy.deepcopy(net)
    train(net, steps=4)
    before = weights_of(average)
    assert sngd.follow(average, net) is average
    torch.testing.assert_close(weights_of(average), before, rtol=1e-12, atol=1e-12)
    assert_average(net, average, lambda: lerp_(average, net))


@pytest.mark.parametrize(
    ("model", "width"),
    [
        (nn.LSTM(5, 4, batch_first=True), (3, 7, 5)),
        (nn.MultiheadAttention(4, 2, batch_first=True), (3, 7, 4)),
        (nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU()), (3, 2, 6, 6)),
    ],
    ids=["LSTM", "attention", "grouped convolution and BatchNorm"],
)
def test_other_layers(model, width):
    net = sngd.reconstruct(model.double(), EVERY_STEP)
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(KEPT))
    averaged.update_parameters(net)
    expected, optimizer = weights_of(net), sgd(net)
    for step in range(6):
        optimizer.zero_grad()
        x = torch.randn(width, generator=torch.Generator().manual_seed(step))
        out = net(x, x, x) if isinstance(model, nn.MultiheadAttention) else net(x)
        (out if isinstance(out, torch.Tensor) else out[0]).square().mean().backward()
        optimizer.step()
        averaged.update_parameters(net)
        for name, weight in weights_of(net).items():
            expected[name] = KEPT * expected[name] + (1 - KEPT) * weight
    found = weights_of(averaged.module)
    for name, _ in net.named_parameters():
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-10)


def test_a_target_in_half_the_precision():
    net = trained()
    target = copy.deepcopy(net).float().requires_grad_(False).eval()
    sngd.follow(target, net)
    train(net, steps=5)
    lerp_(target, net)
    root = sngd.fisher_layers(net)["0.weight"].root
    torch.testing.assert_close(sngd.fisher_layers(target)["0.weight"].root, root)
    assert next(target.parameters()).dtype == torch.float32


def test_a_copy_of_a_copy_is_a_network_of_its_own():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    average = sngd.follow(copy.deepcopy(net), net)
    kept = copy.deepcopy(average)
    train(net)
    assert torch.equal(sngd.fisher_layers(kept)["0.weight"].root, torch.eye(6))
    assert not torch.equal(sngd.fisher_layers(average)["0.weight"].root, torch.eye(6))


@pytest.mark.parametrize("first", ["network", "average"])
def test_a_resumed_average_goes_on_as_if_never_stopped(first):
    def at_the_start():
        net = sngd.reconstruct(mlp(), EVERY_STEP)
        averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(KEPT))
        return net, averaged, sgd(net)

    def go_on(net, averaged, optimizer, first):
        for step in range(first, first + 5):
            train(net, optimizer, steps=1, first=step)
            averaged.update_parameters(net)

    reference = at_the_start()
    go_on(*reference, first=0)
    states = [copy.deepcopy(part.state_dict()) for part in reference]
    resumed = at_the_start()
    parts = list(zip(resumed, states, strict=True))
    for part, state in parts if first == "network" else parts[::-1]:
        part.load_state_dict(state)
    go_on(*reference, first=5)
    go_on(*resumed, first=5)
    assert apart(reference[1], resumed[1]) < 1e-13


def test_reset_and_folded_networks_take_their_followers_along():
    net = trained()
    average = sngd.follow(copy.deepcopy(net), net)
    lerp_(average, net)
    before = weights_of(average)
    sngd.fold_(net)
    assert torch.equal(sngd.fisher_layers(average)["0.weight"].root, torch.eye(6))
    for name, parameter in average.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=1e-12, atol=1e-12)


def test_followers_do_not_live_longer_for_it():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    averages = [AveragedModel(net), sngd.follow(copy.deepcopy(net), net)]
    alive = [weakref.ref(average) for average in averages]
    del averages
    gc.collect()
    assert [each() for each in alive] == [None, None]
    train(net)


def test_an_average_that_does_not_follow_is_reported_once():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    average, optimizer = copy.deepcopy(net), sgd(net)
    text = r"^(0|2).weight: the weights of this copy .* sngd.follow\(copy, net\)"

    def steps(first, last):
        for step in range(first, last):
            train(net, optimizer, steps=1, first=step)
            lerp_(average, net)

    with pytest.warns(sngd.SngdWarning, match=text) as caught:
        steps(0, 9)
    steps(9, 15)
    assert len(caught) == len(sngd.fisher_layers(net))


def test_an_average_that_begins_between_two_refreshes_is_reported_at_the_second():
    net = sngd.reconstruct(mlp(), EVERY_STEP.replace(refresh_every=6))
    optimizer = train(net, steps=2)
    average = copy.deepcopy(net)

    def go_on():
        for step in range(2, 8):
            train(net, optimizer, steps=1, first=step)
            lerp_(average, net)

    with pytest.warns(sngd.SngdWarning, match=r"sngd.follow\(copy, net\)"):
        go_on()


@pytest.mark.parametrize("noticed_by", ["fold", "step"])
@pytest.mark.parametrize("config", FISHERS.values(), ids=FISHERS)
def test_parameters_of_before_a_refresh_that_come_back_are_reported(config, noticed_by):
    net = trained(config=config)
    best, optimizer = copy.deepcopy(net), sgd(net)
    train(net, optimizer)
    for parameter, kept in zip(net.parameters(), best.parameters(), strict=True):
        parameter.data.copy_(kept.data)
    with pytest.warns(sngd.SngdWarning, match=r"0.weight.*: .* load_state_dict"):
        sngd.fold(net) if noticed_by == "fold" else train(net, optimizer, steps=1)


def test_a_whole_state_that_comes_back_is_not_reported():
    net = trained()
    best, optimizer = copy.deepcopy(net), sgd(net)
    train(net, optimizer)
    net.load_state_dict(best.state_dict())
    assert apart(sngd.fold(net), best) < 1e-12
    train(net, optimizer, steps=1)


def test_a_copy_that_was_trained_is_no_average():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    twin = copy.deepcopy(net)
    train(twin)  # its optimizer is gone by now
    gc.collect()
    train(net)
    lerp_(twin, net)
    train(net)


def test_copies_that_are_loaded_trained_or_left_alone_are_not_reported():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    target, other, kept = (copy.deepcopy(net) for _ in range(3))
    before = weights_of(net)
    optimizers = sgd(net), sgd(other)
    for step in range(6):
        for each, optimizer in zip((net, other), optimizers, strict=True):
            train(each, optimizer, steps=1, first=step)
        target.load_state_dict(net.state_dict())
    assert apart(target, net) == 0.0
    assert all(map(torch.equal, weights_of(kept).values(), before.values()))


def test_a_plain_averaged_model_is_left_alone():
    model = mlp()
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    x = batch()
    assert all(itertools.starmap(torch.equal, [(averaged(x), model(x))]))
