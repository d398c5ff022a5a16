"""A forward that the backward pass runs again is observed once, whoever runs it and how often."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sngd_compile as sngd
from api import FISHERS, batch, mlp, rows_of, sgd

pytestmark = pytest.mark.usefixtures("float64")


class Recomputing(torch.autograd.Function):
    """Keeps its input alone, as reentrant functions of other libraries do."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Run without gradients."""
        ctx.run = run
        ctx.save_for_backward(x)
        return run(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor]:
        """Run with gradients."""
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward(ctx.run(x), g)
        return None, x.grad


def again(run: nn.Module, x: Tensor) -> Tensor:
    """Checkpoint so that the forward is repeated where saved tensors are asked for."""
    return checkpoint(run, x, use_reentrant=False)


def reentrant(run: nn.Module, x: Tensor) -> Tensor:
    """Checkpoint so that the first run has no gradients."""
    return checkpoint(run, x, use_reentrant=True)


def own_function(run: nn.Module, x: Tensor) -> Tensor:
    """Checkpoint by a function of one's own."""
    return Recomputing.apply(run, x)


def part(how: Callable[..., Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    """Checkpoint the first layer and leave the rest."""
    return lambda net, x: net[2](net[1](how(net[0], x)))


def nested(outer: Callable[..., Tensor], inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Checkpoint the first layer inside of a checkpoint of all."""
    return lambda net, x: outer(lambda y: part(inner)(net, y), x)


WAYS = {
    "again": again,
    "reentrant": reentrant,
    "own function": own_function,
    "a part reentrant": part(reentrant),
    "again in reentrant": nested(reentrant, again),
    "reentrant in again": nested(again, reentrant),
    "reentrant in reentrant": nested(reentrant, reentrant),
    "again in own function": nested(own_function, again),
}


@pytest.mark.parametrize("fisher", ["shared", "kronecker"])  # which sees gradients too
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_it_trains_as_the_network_does(way, fisher):
    def trained(run: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
        net = sngd.reconstruct(model, FISHERS[fisher])
        optimizer = sgd(net)
        for step in range(4):
            optimizer.zero_grad()
            for half in (0, 1):  # gradients of two passes are added up
                x = batch(2 * step + half, size=4 + 3 * half).requires_grad_()
                run(net, x).square().mean().backward()
            optimizer.step()
        return net

    model = mlp()
    plain, recomputed = trained(lambda net, x: net(x)), trained(way)
    assert rows_of(recomputed) == rows_of(plain)
    states = plain.state_dict(), recomputed.state_dict()
    for one, other in zip(*(state.values() for state in states), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "inside",
    [False, pytest.param(True, marks=pytest.mark.nightly)],
    ids=["around it", "inside"],
)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_compiled_networks_are_observed_once(use_reentrant, inside):
    def loss_of(net: nn.Module, compiles: bool) -> Tensor:
        run = torch.compile(net, backend="aot_eager") if compiles and not inside else net

        def forward(x: Tensor) -> Tensor:
            return checkpoint(run, x, use_reentrant=use_reentrant)

        if compiles and inside:
            forward = torch.compile(forward, backend="aot_eager")
        return forward(batch(3).requires_grad_()).square().mean()

    nets = [sngd.reconstruct(mlp(), FISHERS["shared"]) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net, compiles in zip(nets, (False, True), strict=True):
        loss_of(net, compiles).backward()
        sngd.refresh_(net)
    assert rows_of(nets[0]) == [7, 7]
    for one, other in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
