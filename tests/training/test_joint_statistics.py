"""Adding up what two processes saw gives what one saw of all rows, at any number of rows."""

import copy
import warnings

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from sngd_compile import Config
from sngd_compile.registry import KINDS
from sngd_compile.training.data_parallel import close_steps_

pytestmark = pytest.mark.usefixtures("float64")
ROWS = [(3, 9), (0, 7), (5, 0), (4, 4)]  # of two processes, one step after the other


def network(fisher):
    """Return a network and its Fisher layers, trained by two processes as it seems."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    net = sngd.reconstruct(net, Config(fisher=fisher, max_rows=None))
    return net, list(sngd.fisher_layers(net).values())


@pytest.fixture
def adding_up(monkeypatch):
    """Let two networks of this process add up their statistics."""
    sent, others = [], []

    def all_reduce(flat, op=None, group=None):
        sent.append(flat.clone())
        if others:
            flat.add_(others.pop(0))

    def exchange(one, another):
        both = []
        for layers in (one, another):
            copies = copy.deepcopy(layers)
            for layer in copies:
                layer.ties.process_group = "two"
            sent.clear()
            close_steps_(copies)
            both.append(list(sent))
        for layers, numbers in ((one, both[1]), (another, both[0])):
            others.extend(numbers)
            close_steps_(layers)
            assert not others

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    return exchange


def show(net, rows, scale):
    """Run a step; the loss is a mean over the rows of all processes."""
    (net(rows).square().sum() * scale).backward()


def statistics(layers):
    """List what a checkpoint holds of them."""
    return [value for layer in layers for value in layer.state_dict().values()]


@pytest.mark.parametrize("fisher", ["shared", "kronecker", "diagonal"])
def test_each_process_holds_what_one_would(fisher, adding_up):
    (one, mine), (another, theirs), (alone, right) = (network(fisher) for _ in range(3))
    for layer in (*mine, *theirs):
        layer.ties.process_group = "two"
    for step, (first, second) in enumerate(ROWS):
        number = first + second
        rows = torch.randn(number, 5, generator=torch.Generator().manual_seed(step))
        show(one, rows[:first], 2 / number)
        show(another, rows[first:], 2 / number)
        show(alone, rows, 1 / number)
        adding_up(mine, theirs)
        close_steps_(right)
        assert all(map(torch.equal, statistics(mine), statistics(theirs)))
        torch.testing.assert_close(statistics(mine), statistics(right))
        if step == 1:  # a file that the first has written, which the second reads
            another.load_state_dict(one.state_dict())
            for layer in theirs:
                layer.joint_sum, layer.joint_rows = layer.sum.clone(), layer.tally[0].clone()
    for layer in (*mine, *right):
        assert layer.absorb_()
    torch.testing.assert_close(statistics(mine), statistics(right))


@pytest.mark.parametrize("relative", [1e-2, 1e-6])
@pytest.mark.parametrize("fisher", sorted(KINDS))
def test_what_is_symmetric_to_rounding_has_a_root(fisher, relative):
    # As sums of more than two processes are, which add up each number in an order of its own.
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).float()
    config = Config(fisher=fisher, damping_rel_trace=relative, block_size=3, activation="tanh")
    net = sngd.reconstruct(model, config)
    net(torch.randn(40, 5).float()).square().mean().backward()
    for layer in sngd.fisher_layers(net).values():
        layer.sum.mul_(1 + torch.randint(-1, 2, layer.sum.shape) * torch.finfo(torch.float32).eps)
    before = [layer.root for layer in sngd.fisher_layers(net).values()]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sngd.refresh_(net)
    assert said == []
    for layer, root in zip(sngd.fisher_layers(net).values(), before, strict=True):
        assert not torch.equal(layer.root, root)
