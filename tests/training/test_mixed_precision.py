"""Autocast and gradient scalers: what the statistics see, what a skipped step leaves, the bounds.

The bounds are those of docs/numerics.md.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from api import EVERY_STEP, FISHERS, apart, batch, mlp, sgd, steps_of

HALVES = [torch.bfloat16, torch.float16]
WIDTH = 11


def rows(step: int) -> Tensor:
    """Draw an odd number of rows, whose columns span two decades."""
    return batch(step, 33, WIDTH) * torch.logspace(0, -2, WIDTH)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, WIDTH)),
        nn.Conv1d(1, 6, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(54, 7),
        nn.Tanh(),
        nn.Linear(7, 3),
    )


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.norm())


def observed(dtype: torch.dtype | None, fisher: str) -> nn.Module:
    """Take a gradient in each of two roots, of which the second is no identity."""
    net = sngd.reconstruct(model(), FISHERS[fisher])
    for step in range(2):
        net.zero_grad()
        with torch.autocast("cpu", dtype=dtype) if dtype else nullcontext():
            loss = (net(rows(step)).float() - 1).square().mean()
        loss.backward()
        if step == 0:
            sngd.refresh_(net)
    return net


@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_rounds_as_in_the_plain_network(dtype, fisher):
    net, wide = (observed(which, fisher) for which in (dtype, None))
    layers = [[*sngd.fisher_layers(each).values()] for each in (net, wide)]
    moved = [distance(a.factor, b.factor) for a, b in zip(*layers, strict=True)]
    # Activations are rounded once; the inputs of the network are float32. Of units its outputs
    # weigh them.
    assert max(moved) < torch.finfo(dtype).eps
    assert moved[0] == 0.0 or fisher == "unit"
    plain = sngd.fold(net)
    outputs = []
    for each in (net, plain):
        each.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            outputs.append(each(rows(7)))
        (outputs[-1].float() - 1).square().mean().backward()
    # The same weights, rounded after they were folded in float32: the same network, to the bit.
    assert torch.equal(*outputs)
    for index in (1, 4, 6):
        gradients = net[index].weight.grad, plain[index].weight.grad
        assert distance(*gradients) < 1e-4  # float32, there and back through the root


def scaled(net: nn.Module, factors: Iterator[float]) -> None:
    """Train on two micro-batches a step, clipped, while the scale changes after each step."""
    optimizer = sgd(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9, growth_interval=1)
    for step, factor in enumerate(factors):
        optimizer.zero_grad()
        for part in batch(step, 9).split(5):
            scaler.scale(net(part).square().sum() * factor / 9).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update(2.0**3 if step == 3 else None)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("fisher", [name for name in FISHERS if name != "kronecker"])
def test_changing_scales_change_no_trajectory(fisher):
    found = []
    for enabled in (True, False):
        torch.manual_seed(0)
        net = sngd.reconstruct(mlp(), FISHERS[fisher])
        if enabled:
            scaled(net, iter([1.0] * 6))
        else:
            optimizer = sgd(net)
            for step in range(6):
                optimizer.zero_grad()
                for part in batch(step, 9).split(5):
                    (net(part).square().sum() / 9).backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
        found.append(net)
    assert apart(*found) < 1e-12


@pytest.mark.usefixtures("float64")
def test_rows_of_skipped_steps_count_and_nothing_else_of_them():
    config = EVERY_STEP.replace(refresh_every=1, ema_decay=0.5)
    net = sngd.reconstruct(mlp(), config)
    scaled(net, iter([1.0]))
    layer = sngd.fisher_layers(net)["0.weight"]
    before = [t.clone() for t in (*net.parameters(), layer.factor, layer.root)]
    scaled(net, iter([math.inf, math.nan]))
    after = [*net.parameters(), layer.factor, layer.root]
    assert all(map(torch.equal, before, after))
    assert steps_of(net) == [1, 1]
    assert layer.rows_seen == 27
    scaled(net, iter([1.0]))
    # The rows of the skipped steps are as good as any: they enter with those of the next one.
    x = torch.cat([batch(0, 9), batch(0, 9), batch(1, 9)])
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    mean = x.T @ x / len(x)
    weight = 0.5 / (0.5 + 1)  # of the past; the steps since count as one, and start from none
    torch.testing.assert_close(layer.factor, weight * before[-2] * 1 + (1 - weight) * mean)
    assert steps_of(net) == [2, 2]


def test_a_forward_pass_that_overflows_is_not_observed():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    optimizer, scaler = sgd(net), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    weights, seen = [], []
    for factor in (1.0, 1e5, 1.0):  # 1e5 is infinite in float16
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            hidden = net[1](net[0](batch())).half() * factor
            loss = net[2](hidden).float().square().mean()
        scaler.scale(loss).backward()
        with pytest.warns(sngd.SngdWarning, match="2.weight") if factor > 1 else nullcontext():
            scaler.step(optimizer)
            sngd.refresh_(net)
        scaler.update()
        weights.append(net[0].weight_prime.detach().clone())
        seen.append([f.rows_seen for f in sngd.fisher_layers(net).values()])
    assert seen == [[7, 7], [14, 7], [21, 14]]
    assert steps_of(net) == [2, 2]
    assert scaler.get_scale() == 2.0**9
    assert all(value.isfinite().all() for value in net.state_dict().values())
