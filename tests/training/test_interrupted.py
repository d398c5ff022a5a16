"""A refresh that is interrupted, wherever, leaves function, momentum and gradient as they were."""

from contextlib import suppress
from itertools import count

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from api.interruption import StrikeAt
from sngd_compile import Config
from sngd_compile.fisher.weight_map import visibly_mapped

pytestmark = pytest.mark.usefixtures("float64")
X = torch.randn(30, 5, dtype=torch.float64)


def prepared(config: Config) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Train a little, so that there are roots, momenta, and a gradient that waits."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 3))
    net = sngd.reconstruct(model, config)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for step in range(3):
        optimizer.zero_grad()
        (net(X + step) - 1).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    (net(X - 5) - 1).square().mean().backward()
    return net, optimizer


def seen_from_outside(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return outputs, and momentum and gradient in the coordinates of w."""
    found = [net(X).detach()]
    parameters = dict(net.named_parameters())
    for name, layer in sngd.fisher_layers(net).items():
        pair = [parameters[name], parameters[name.removesuffix("weight") + "bias"]]
        momenta = [optimizer.state[p]["momentum_buffer"] for p in pair]
        root, layout = layer.root_buffers, layer.layout
        found += visibly_mapped("fold", root, layout, *momenta)
        gradients = layout.matrices(pair[0].grad), layout.vectors(pair[1].grad)
        found += root.from_prime(*gradients)
    return found


@pytest.mark.parametrize(
    "changes",
    [{}, {"rank": 1}, {"fisher": "kronecker"}, {"root": "symmetric"}],
    ids=["exact", "sketch", "kronecker", "symmetric"],
)
def test_it_leaves_all_as_it_was(changes):
    net, optimizer = prepared(Config(observe_every=1, **changes))
    before = seen_from_outside(net, optimizer)
    for number in count(1, 7):
        error = KeyboardInterrupt() if number % 2 else torch.OutOfMemoryError("none left")
        net(X * number)  # so that every layer is due again
        strike = StrikeAt(number, error)
        with strike, suppress(type(error)):
            sngd.refresh_(net)
        # What was moved already and what was not are the same from outside.
        torch.testing.assert_close(seen_from_outside(net, optimizer), before)
        if strike.left > 0:
            break  # the refresh had fewer operations
    assert number > 100
    optimizer.step()
    assert net(X).isfinite().all()


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_that_is_given_up_leaves_nothing_of_its_gradients(to_none, parts):
    def accumulate(net: nn.Module, x: Tensor) -> None:
        net.zero_grad(set_to_none=to_none)
        for part in x.chunk(parts):
            ((net(part) - 1).square().mean() / parts).backward()
            with torch.no_grad():
                net(part)  # as to print a metric

    net, _ = prepared(Config(observe_every=1, fisher="kronecker"))
    sides = [net[index].weight_fisher.output_side for index in (0, 3)]
    accumulate(net, X)
    expected = [side.sum.clone() for side in sides]
    tallies = [side.tally.clone() for side in sides]
    for number in count(1, 11):
        strike = StrikeAt(number, KeyboardInterrupt())
        with strike, suppress(KeyboardInterrupt):
            accumulate(net, 3 * X)
        accumulate(net, X)
        torch.testing.assert_close([side.sum for side in sides], expected)
        assert all(map(torch.equal, (side.tally for side in sides), tallies))
        if strike.left > 0:
            break
    assert number > 100


def test_a_process_that_fails_in_the_sum_leaves_the_statistics(monkeypatch):
    net, _ = prepared(Config(observe_every=1))
    net(X)
    layer = net[0].weight_fisher
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}

    sent = []

    def torn(sum, op=None, group=None):
        sent.append(sum.mul_(2))  # what the others have seen is there, but not yet how many rows
        if len(sent) == 2:
            raise RuntimeError("another process is gone")

    monkeypatch.setattr(torch.distributed, "all_reduce", torn)
    layer.ties.process_group = "two processes"
    with pytest.raises(RuntimeError, match="is gone"):
        sngd.refresh_(net)
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())
