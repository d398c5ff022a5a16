"""What processes do together all do, or none; each gets a fair share of it."""

import signal

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from sngd_compile.training.joint_roots import owners_of
from sngd_compile.training.transaction import agreed, interrupts_wait

pytestmark = pytest.mark.usefixtures("float64")


def layers(*widths):
    """Return the Fisher layers of a network."""
    model = nn.Sequential(*(nn.Linear(width, 2) for width in widths))
    return list(sngd.fisher_layers(sngd.reconstruct(model, sngd.Config(rank=None))).values())


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_the_largest_decompositions_are_shared_out_first(processes):
    some = layers(40, 3, 40, 5, 20, 40, 2, 40)
    owners = owners_of(some, processes)
    assert set(owners) == set(range(processes))
    largest = [owner for layer, owner in zip(some, owners, strict=True) if layer.size == 41]
    assert len(set(largest)) == min(processes, 4)
    work = {layer: layer.size**3 for layer in some}
    shares = [[la for la, o in zip(some, owners, strict=True) if o == p] for p in range(processes)]
    busy = [sum(map(work.__getitem__, share)) for share in shares]
    # Nobody does anything that another one could have begun earlier.
    for share, whole in zip(shares, busy, strict=True):
        assert whole - min(map(work.__getitem__, share)) <= min(busy)
    assert owners == owners_of(some, processes)


def exchange(monkeypatch, theirs):
    """Let another process say these numbers, and keep what this one has said."""
    said = []

    def all_reduce(numbers, op=None, group=None):
        said.append(numbers.clone())
        other = torch.tensor(theirs)
        is_sum = op == torch.distributed.ReduceOp.SUM
        numbers.copy_(numbers + other if is_sum else torch.maximum(numbers, other))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return said


def test_findings_are_those_of_all(monkeypatch):
    exchange(monkeypatch, [2.0, 5.0, 0.0])
    found = torch.tensor([3.0, 4.0])
    assert agreed("two", layers(2), 2, lambda: found).tolist() == [5.0, 9.0]
    assert agreed("two", layers(2), 2, lambda: found, largest=True).tolist() == [3.0, 5.0]
    assert agreed(None, layers(2), 2, lambda: found) is found


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), KeyboardInterrupt(), ValueError()])
def test_who_fails_says_so_before_it_raises(error, monkeypatch):
    said = exchange(monkeypatch, [2.0, 0.0])

    def fail():
        raise error

    with pytest.raises(type(error)):
        agreed("two", layers(2), 1, fail)
    assert [numbers.tolist() for numbers in said] == [[0.0, 1.0]]


def test_who_does_not_fail_raises_with_the_others(monkeypatch):
    exchange(monkeypatch, [0.0, 1.0])
    with pytest.raises(sngd.SngdError, match=r"0\.weight .* 2 weights in all: another process"):
        agreed("two", layers(2, 3), 1, lambda: torch.ones(1))


@pytest.mark.parametrize(
    ("group", "times", "ends"), [("two", 1, True), ("two", 2, False), (None, 1, False)]
)
def test_ctrl_c_waits_for_the_others_unless_it_comes_twice(group, times, ends):
    done = []

    def work():
        with interrupts_wait(group):
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
            done.append("all")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert bool(done) is ends
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
