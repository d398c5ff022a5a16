"""Optimizers that are not SGD, and those that step something else."""

import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import sngd_compile as sngd
from api import AS_IN_THE_PAPER, EVERY_STEP, apart, batch, mlp, sgd, steps_of, train, trained
from sngd_compile import SngdWarning

pytestmark = pytest.mark.usefixtures("float64")


def loss(net):
    with torch.no_grad():
        return float(net(batch()).square().mean())


ADAPTIVE = [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad]


@pytest.mark.parametrize("kind", ADAPTIVE)
def test_adaptive_optimizers_warn_once_and_work(kind):
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    before, optimizer = loss(net), kind(net.parameters(), lr=0.01)
    with pytest.warns(SngdWarning, match=f"{kind.__name__} steps 2 reconstructed weights") as found:
        train(net, optimizer, steps=20)
    assert len(found) == 1
    assert "torch.optim.SGD" in str(found[0].message)
    assert loss(net) < 0.7 * before
    assert apart(net, sngd.fold(net)) < 1e-12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, optimizer, steps=5)


def test_lbfgs_works():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    before = loss(net)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=3)

    def closure():
        optimizer.zero_grad()
        value = net(batch()).square().mean()
        value.backward()
        return value

    with pytest.warns(SngdWarning, match="LBFGS"):
        optimizer.step(closure)
    for _ in range(3):
        optimizer.step(closure)
    assert steps_of(net) == [4, 4]
    assert loss(net) < 0.1 * before


def test_adam_keeps_its_first_moment_in_place():
    net = sngd.reconstruct(mlp(), EVERY_STEP.replace(refresh_every=100, early_refreshes=()))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    with pytest.warns(SngdWarning):
        train(net, optimizer)
    pair = [optimizer.state[p]["exp_avg"] for p in (net[0].weight_prime, net[0].bias_prime)]
    in_w = torch.cat([pair[0], pair[1][:, None]], 1)  # the root is the identity still
    sngd.refresh_(net)
    root = sngd.fisher_layers(net)["0.weight"].root
    assert not torch.allclose(root, torch.eye(6))
    torch.testing.assert_close(torch.cat([pair[0], pair[1][:, None]], 1) @ root, in_w)


def test_subclasses_of_sgd_do_not_warn():
    class Mine(torch.optim.SGD):
        """Plain SGD under another name."""

    net = sngd.reconstruct(mlp(), EVERY_STEP)
    train(net, Mine(net.parameters(), lr=0.02))
    assert steps_of(net) == [5, 5]


def test_an_optimizer_of_something_else_is_never_touched():
    net, plain = trained(), mlp()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.Adam(plain.parameters())
    plain(batch()).sum().backward()
    plain[0].weight.grad.fill_(float("nan"))
    optimizer.step()
    assert plain[0].weight.isnan().all()
    assert all(map(torch.equal, net.state_dict().values(), before.values()))


def test_an_optimizer_of_the_other_parameters_refreshes_nothing():
    model = nn.Sequential(mlp(), nn.LayerNorm(3))
    net = sngd.reconstruct(model, EVERY_STEP, overrides={"1.*": None})
    train(net, torch.optim.SGD(net[1].parameters(), lr=0.1))
    assert steps_of(net) == [0, 0]
    assert torch.equal(sngd.fisher_layers(net)["0.0.weight"].root, torch.eye(6))


def test_two_networks_do_not_interfere():
    model = mlp()
    alone = sngd.reconstruct(model, EVERY_STEP)
    train(alone)
    first = sngd.reconstruct(model, EVERY_STEP)
    second = sngd.reconstruct(mlp(), EVERY_STEP.replace(root="symmetric"))
    optimizers = sgd(first), sgd(second)
    for step in range(5):
        train(first, optimizers[0], steps=1, first=step)
        train(second, optimizers[1], steps=1, first=step + 7)
    assert all(map(torch.equal, first.state_dict().values(), alone.state_dict().values()))


def test_one_optimizer_for_a_network_and_a_plain_model():
    net, plain = sngd.reconstruct(mlp(), EVERY_STEP), mlp()
    expected = sngd.fold(sngd.reconstruct(plain))
    optimizer = torch.optim.SGD([*net.parameters(), *plain.parameters()], lr=0.02)
    reference = torch.optim.SGD(expected.parameters(), lr=0.02)
    for step in range(4):
        optimizer.zero_grad()
        reference.zero_grad()
        (net(batch(step)).square().mean() + plain(batch(step)).square().mean()).backward()
        expected(batch(step)).square().mean().backward()
        optimizer.step()
        reference.step()
    assert steps_of(net) == [4, 4]
    assert apart(plain, expected) == 0.0


def test_averaging_belongs_on_the_folded_network():
    model = mlp()
    net = sngd.reconstruct(model, EVERY_STEP)
    averaged, optimizer, seen = AveragedModel(model), sgd(net), []
    for step in range(4):
        train(net, optimizer, steps=1, first=step)
        averaged.update_parameters(sngd.fold(net))
        seen.append(sngd.fold(net)[0].weight)
    torch.testing.assert_close(averaged.module[0].weight, torch.stack(seen).mean(0))


def test_an_average_of_networks_stays_what_it_is_while_they_train():
    net = trained()
    averaged = AveragedModel(net)
    averaged.update_parameters(net)
    assert apart(averaged, net) == 0.0
    before = averaged.module[0].weight.clone()
    train(net)
    torch.testing.assert_close(averaged.module[0].weight, before, rtol=1e-13, atol=1e-13)
    assert steps_of(averaged) == [5, 5]


def test_optimizers_that_step_inside_the_backward_pass():
    # Each of them knows its own parameter only, so weight and bias would have a bound each.
    free = EVERY_STEP.replace(**AS_IN_THE_PAPER)
    net, reference = (sngd.reconstruct(mlp(), free) for _ in range(2))
    reference.load_state_dict(net.state_dict())
    optimizers = {p: torch.optim.SGD([p], lr=0.03, momentum=0.9) for p in net.parameters()}

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    for index in range(7):
        net(batch(index)).square().mean().backward()
    train(reference, steps=7)
    assert apart(net, reference) < 1e-13


class SlowWeights(torch.optim.SGD):
    """SGD that keeps a slow copy of each parameter, and goes back to it every third step."""

    def step(self, closure=None):
        """Step, average, and now and then take the average."""
        super().step(closure)
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                state = self.state[parameter]
                slow = state.setdefault("slow", parameter.clone())
                state["count"] = state.get("count", 0) + 1
                slow.lerp_(parameter, 0.25)
                if state["count"] % 3 == 0:
                    parameter.copy_(slow)


def test_a_slow_copy_in_the_state_of_an_optimizer_moves_along():
    net = trained()
    optimizer = SlowWeights(net.parameters(), lr=0.02)
    train(net, optimizer, steps=1)

    def slow_weights():
        copied = sngd.reconstruct(mlp(), EVERY_STEP)
        copied.load_state_dict(net.state_dict())
        with torch.no_grad():
            for own, parameter in zip(copied.parameters(), net.parameters(), strict=True):
                own.copy_(optimizer.state[parameter]["slow"])
        return sngd.fold(copied).state_dict()

    before = slow_weights()
    sngd.refresh_(net)
    root = sngd.fisher_layers(net)["0.weight"].root
    train(net, steps=2)
    assert not torch.equal(root, sngd.fisher_layers(net)["0.weight"].root)
    for name, weight in slow_weights().items():
        torch.testing.assert_close(weight, before[name], rtol=1e-9, atol=1e-11)


def test_squares_in_the_state_of_an_optimizer_stay():
    net = trained()
    with pytest.warns(SngdWarning, match="RMSprop"):
        optimizer = train(net, torch.optim.RMSprop(net.parameters(), lr=1e-3))
    squares = optimizer.state[net[0].weight_prime]["square_avg"]
    before = squares.clone()
    train(net, steps=3)
    assert torch.equal(squares, before)
