"""A run that is saved and resumed in fresh objects is the uninterrupted run, bit for bit."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

import sngd_compile as sngd
from sngd_compile import Config
from sngd_compile.registry import ROOTS

pytestmark = pytest.mark.usefixtures("float64")

CONFIG = Config(
    refresh_every=4,
    early_refreshes=(1, 3),
    observe_every=3,
    early_observations=(1,),
    max_rows=5,
    seed=11,
)


def model():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 4 * 5, 3)
    )


def step(net, optimizer, scheduler, number):
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(33, 2, 4, 5, generator=generator)
    optimizer.zero_grad()
    F.cross_entropy(net(x), x.flatten(1)[:, :3].argmax(1)).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    scheduler.step()


def start(root):
    net = sngd.reconstruct(model(), CONFIG.replace(root=root))
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, nesterov=True)
    return net, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("stop", [0, 1, 2, 5, 7])
def test_resuming_is_not_stopping(stop, root):
    run = start(root)
    for number in range(stop):
        step(*run, number)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in run], file)
    for number in range(stop, 12):
        step(*run, number)

    resumed = start(root)
    file.seek(0)
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    for number in range(stop, 12):
        step(*resumed, number)
    states = [part[0].state_dict() for part in (run, resumed)]
    assert all(map(torch.equal, *(state.values() for state in states)))
    momenta = [
        [state["momentum_buffer"] for state in part[1].state_dict()["state"].values()]
        for part in (run, resumed)
    ]
    assert all(map(torch.equal, *momenta))


def test_the_schedule_is_part_of_the_state():
    net, optimizer, scheduler = start("cholesky")
    for number in range(7):
        step(net, optimizer, scheduler, number)
    other = sngd.reconstruct(model(), CONFIG)
    other.load_state_dict(net.state_dict())
    for mine, theirs in zip(
        sngd.fisher_layers(net).values(), sngd.fisher_layers(other).values(), strict=True
    ):
        assert (mine.schedule.steps, mine.schedule.observed_steps) == (7, 1)
        assert torch.equal(mine.schedule.gate, theirs.schedule.gate)
        assert torch.equal(mine.get_extra_state(), theirs.get_extra_state())


def test_the_drawn_rows_depend_on_the_seed_and_the_step_only():
    factors = []
    for seed in (11, 11, 12):
        torch.manual_seed(seed + len(factors))
        net = sngd.reconstruct(nn.Linear(4, 2), CONFIG.replace(seed=seed))
        x = torch.linspace(-1, 1, 400).reshape(100, 4).cos()
        state = torch.get_rng_state()
        net(x)
        assert torch.equal(torch.get_rng_state(), state)
        sngd.refresh_(net)
        factors.append(copy.deepcopy(sngd.fisher_layers(net)["weight"].factor))
    assert torch.equal(factors[0], factors[1])
    assert not torch.equal(factors[0], factors[2])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_asking_for_the_states_of_an_optimizer_is_no_step_of_training(momentum):
    def begun():
        torch.manual_seed(0)
        net = sngd.reconstruct(model(), CONFIG.replace(refresh_every=2, fisher="kronecker"))
        return net, torch.optim.SGD(net.parameters(), 0.05, momentum=momentum)

    def walk(net, optimizer, numbers, saves):
        for number in numbers:
            step(net, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0), number)
            optimizer.zero_grad()
            if saves:
                get_optimizer_state_dict(net, optimizer)

    one, other, third = begun(), begun(), begun()
    walk(*one, range(5), saves=False)
    walk(*other, range(5), saves=True)
    states = copy.deepcopy(get_state_dict(*other))
    set_model_state_dict(third[0], states[0])
    set_optimizer_state_dict(*third, states[1])
    for run in (one, other, third):
        walk(*run, range(5, 9), saves=False)
    expected = one[0].state_dict().values()
    for net, _ in (other, third):
        assert all(map(torch.equal, net.state_dict().values(), expected))


@pytest.mark.parametrize("fisher", ["shared", "kronecker"])
def test_a_step_that_was_begun_before_a_save_is_taken_again(fisher):
    config = CONFIG.replace(refresh_every=2, early_refreshes=(), observe_every=1, max_rows=None)
    config = config.replace(fisher=fisher, ema_decay=0.0)
    x = torch.randn(12, 4)

    def begun():
        torch.manual_seed(0)
        net = sngd.reconstruct(nn.Linear(4, 3), config)
        return net, torch.optim.SGD(net.parameters(), 0.01)

    def accumulate(net, parts):
        for part in parts:
            net(part).square().sum().div(12).backward()

    one, other = begun(), begun()
    accumulate(one[0], x.split(4)[:2])
    other[0].load_state_dict(copy.deepcopy(one[0].state_dict()))
    for net, optimizer in (one, other):
        accumulate(net, x.split(4)[2:] if net is one[0] else x.split(4))
        optimizer.step()
    layers = [net.weight_fisher for net, _ in (one, other)]
    # Its inputs count twice in the mean, and gradients at outputs, which are of a step, once.
    assert [layer.rows_seen for layer in layers] == [12, 20]
    torch.testing.assert_close(layers[1].sum, layers[0].sum + _moment(x[:8]))
    if fisher == "kronecker":
        torch.testing.assert_close(layers[1].output_side.total, layers[0].output_side.total)


def _moment(x):
    rows = torch.cat([x, torch.ones(len(x), 1)], 1)
    return rows.mT @ rows
