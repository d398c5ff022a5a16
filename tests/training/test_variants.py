"""Any optimizer that is linear in the gradients: the trajectory does not depend on the root.

The symmetric and the Cholesky root give the same metric in different coordinates, so a momentum or
a weight that is left behind at a refresh makes the two runs part.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

import sngd_compile as sngd
from api import EVERY_STEP, batch, mlp, rows_of, steps_of, train

pytestmark = pytest.mark.usefixtures("float64")
Optimizers = Callable[[nn.Module], list[Optimizer]]
MODEL = mlp().double()


def named(net, ending):
    return [p for name, p in net.named_parameters() if name.endswith(ending)]


def one(**arguments) -> Optimizers:
    return lambda net: [SGD(net.parameters(), lr=0.02, **arguments)]


def run(optimizers: Optimizers, root: str, steps: int = 9) -> nn.Module:
    net = sngd.reconstruct(MODEL, EVERY_STEP.replace(root=root))
    made = optimizers(net)
    for step in range(steps):
        net.zero_grad()
        net(batch(step)).square().mean().backward()
        for optimizer in made:
            optimizer.step()
    return net


def assert_independent_of_the_root(optimizers: Optimizers) -> None:
    nets = [run(optimizers, root) for root in ("cholesky", "symmetric")]
    assert not torch.allclose(nets[0][0].weight_prime, nets[1][0].weight_prime)
    plain = [sngd.fold(net).state_dict() for net in nets]
    torch.testing.assert_close(plain[0], plain[1], rtol=1e-10, atol=1e-12)


def grouped(net):
    groups = [
        {"params": named(net, "weight")},
        {"params": named(net, "bias"), "momentum": 0.9},
    ]
    return [SGD(groups, lr=0.02, momentum=0.9)]


def grown(net):
    optimizer = SGD(net[0].parameters(), lr=0.02, momentum=0.9)
    optimizer.add_param_group({"params": list(net[2].parameters()), "momentum": 0.5})
    return [optimizer]


VARIANTS = {
    "plain": one(),
    "foreach": one(momentum=0.9, foreach=True),
    "for loop": one(momentum=0.9, foreach=False),
    "fused": one(momentum=0.9, fused=True),
    "nesterov": one(momentum=0.9, nesterov=True),
    "dampening": one(momentum=0.9, dampening=0.3),
    "weight decay": one(momentum=0.9, weight_decay=0.1),
    "maximize": one(momentum=0.5, maximize=True),
    "tensor lr": lambda net: [SGD(net.parameters(), lr=torch.tensor(0.02), momentum=0.9)],
    "groups": grouped,
    "added group": grown,
    "one per layer": lambda net: [
        SGD(net[k].parameters(), lr=0.02, momentum=0.5 + 0.1 * k) for k in (2, 0)
    ],
    "biases first": lambda net: [
        SGD(named(net, end), lr=0.02, momentum=0.9) for end in ("bias", "weight")
    ],
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_root_does_not_matter(kind):
    assert_independent_of_the_root(VARIANTS[kind])


@pytest.mark.parametrize("kind", ["foreach", "fused", "for loop"])
def test_implementations_agree(kind):
    expected = run(one(momentum=0.9), "cholesky")
    torch.testing.assert_close(
        run(VARIANTS[kind], "cholesky").state_dict(), expected.state_dict(), rtol=1e-12, atol=1e-13
    )


def test_schedulers_and_clipping():
    def scheduled(root):
        net = sngd.reconstruct(MODEL, EVERY_STEP.replace(root=root))
        optimizer = SGD(net.parameters(), lr=0.5, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=9)
        for step in range(9):
            optimizer.zero_grad()
            net(batch(step)).square().mean().backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.01)
            optimizer.step()
            schedule.step()
        return sngd.fold(net).state_dict()

    torch.testing.assert_close(scheduled("cholesky"), scheduled("symmetric"))


def test_micro_batches_are_one_batch():
    nets = [sngd.reconstruct(MODEL, EVERY_STEP) for _ in range(2)]
    for step in range(6):
        x = batch(step, size=12)
        for net, parts in zip(nets, (1, 3), strict=True):
            net.zero_grad()
            for part in x.chunk(parts):
                (net(part).square().mean() / parts).backward()
    for net in nets:
        SGD(net.parameters(), lr=0.1).step()
    assert rows_of(nets[0]) == rows_of(nets[1]) == [72, 72]
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict(), rtol=1e-11, atol=1e-12)


def test_gradients_accumulate_across_a_refresh():
    net = sngd.reconstruct(MODEL, EVERY_STEP)
    train(net)
    net.zero_grad()
    net(batch(50)).square().mean().backward()
    sngd.refresh_(net)
    moved = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(batch(50)).square().mean().backward()
    torch.testing.assert_close(moved, [p.grad for p in net.parameters()])


def test_closures_are_steps():
    net, other = (sngd.reconstruct(MODEL, EVERY_STEP) for _ in range(2))
    optimizer, expected = SGD(net.parameters(), lr=0.02), SGD(other.parameters(), lr=0.02)

    def closure(step):
        optimizer.zero_grad()
        loss = net(batch(step)).square().mean()
        loss.backward()
        return loss

    for step in range(4):
        call = partial(closure, step)
        loss = optimizer.step(call) if step % 2 else optimizer.step(closure=call)
        assert loss.item() > 0
    train(other, expected, steps=4)
    assert steps_of(net) == steps_of(other) == [4, 4]
    assert all(map(torch.equal, net.state_dict().values(), other.state_dict().values()))


def test_parameters_added_later_are_found():
    net = sngd.reconstruct(MODEL, EVERY_STEP)
    optimizer = SGD(net[0].parameters(), lr=0.02)
    train(net, optimizer, steps=2)
    optimizer.add_param_group({"params": net[2].parameters()})
    train(net, optimizer, steps=3, first=2)
    assert steps_of(net) == [5, 3]


def test_a_parameter_assigned_later_is_found():
    net = sngd.reconstruct(MODEL, EVERY_STEP)
    optimizer = train(net, steps=2)
    net[0].weight = nn.Parameter(torch.randn(4, 5))
    optimizer.param_groups[0]["params"] = list(net.parameters())
    train(net, optimizer, steps=3, first=2)
    assert steps_of(net) == [3, 5]
