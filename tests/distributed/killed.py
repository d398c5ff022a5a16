"""Processes that are killed, and others that go on: print what differs from an undisturbed run.

That has as many processes in each step, and only those that join it load a file.
"""

import gc
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from multiprocessing.connection import wait
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

import elastic as example
import sngd_compile as sngd
from api import FISHERS
from data import Dataset, Name
from sngd_compile.training import optimizer_hooks

SIZES = (4, 2, 3, 3)  # processes of one attempt after the other
STEPS, MOST, HANGS = 40, 5, 60  # steps and kills of one training; seconds
SCHEDULE = {"refresh_every": 6, "early_refreshes": (1, 3), "observe_every": 2, "max_rows": 25}
PARTED = ("symmetric", "sketch", "unit", "kronecker")  # of these only weights are decayed
fork = multiprocessing.get_context("fork")  # the libraries are imported once


class Fate(NamedTuple):
    """Which process dies where, and at which of the moments there."""

    rank: int
    place: str
    number: int


class Segment(NamedTuple):
    """Steps of a training that as many processes take."""

    size: int
    first: int
    last: int


def die() -> None:
    """End as by a pulled plug."""
    os.kill(os.getpid(), signal.SIGKILL)


class DieAt(TorchDispatchMode):
    """Kills the process at one operation of many."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run it, or die."""
        self.left -= 1
        if self.left == 0:
            die()
        return function(*args, **(kwargs or {}))


def change(owner: Any, name: str, changed: Callable[..., Any]) -> None:
    """Replace a function by `changed(original, *args)` until the process ends."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *args: changed(original, *args))


def anywhere(number: int) -> None:
    """Die at an operation of a forward or backward pass, of a step, a refresh, a sum."""
    DieAt(number).__enter__()


def in_a_refresh(number: int) -> None:
    """Die at an operation of a refresh."""
    mode = DieAt(number)

    def refresh(original: Any, *args: Any) -> None:
        with mode:
            original(*args)

    change(optimizer_hooks, "refresh_sites", refresh)


def before_a_refresh(number: int) -> None:
    """Die after a step that was observed and is followed by no refresh."""
    left = itertools.count(number, -1)

    def end_step(original: Any, observed: Any, due: Any, learning: Any) -> None:
        original(observed, due, learning)
        if observed and not due and next(left) == 1:
            die()

    change(optimizer_hooks, "_end_step", end_step)


def in_a_save(number: int) -> None:
    """Die when half of a file is written."""
    left = itertools.count(number, -1)

    def save(original: Any, states: Any, file: Any) -> None:
        original(states, whole := BytesIO())
        if next(left) == 1:
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            die()
        file.write(whole.getvalue())

    change(torch, "save", save)


def after_a_save(number: int) -> None:
    """Die when a file is whole and not in its place."""
    left = itertools.count(number, -1)
    change(os, "fsync", lambda original, file: die() if next(left) == 1 else original(file))


# What kills, and at which of its moments at the latest.
PLACES: dict[Callable[[int], None], int] = {
    in_a_save: 3,
    before_a_refresh: 5,
    in_a_refresh: 500,
    anywhere: 2000,
    after_a_save: 3,
}
BY_NAME = {place.__name__: place for place in PLACES}
SAVES = (in_a_save, after_a_save)


def fates(draw: random.Random) -> Iterator[Fate]:
    """Draw a fate for each attempt; all places come equally often."""
    for size, place in zip(itertools.cycle(SIZES), itertools.cycle(PLACES), strict=True):
        rank = 0 if place in SAVES else draw.randrange(size)
        yield Fate(rank, place.__name__, draw.randint(1, PLACES[place]))


def start(fisher: str) -> tuple[nn.Module, Optimizer]:
    """Return what every process begins with."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 5))
    net = sngd.reconstruct(model, FISHERS[fisher].replace(**SCHEDULE))
    weights, biases = ([p for p in net.parameters() if p.dim() == n] for n in (2, 1))
    decay = 0.1 if fisher in PARTED else 0.0
    groups = [{"params": weights, "weight_decay": decay}, {"params": biases}]
    return net, SGD(groups, lr=0.02, momentum=0.9)


def data() -> Dataset:
    """Return rows that are in no file."""
    inputs = torch.randn(200, 9, generator=torch.Generator().manual_seed(1))
    labels = inputs[:, :5].argmax(dim=1)
    return Dataset(Name.DIGITS, inputs, labels, inputs, labels)


def meet(rank: int, size: int, place: Path) -> None:
    """Join the others."""
    dist.init_process_group("gloo", f"file://{place}", rank=rank, world_size=size)


def end(rank: int, net: nn.Module, optimizer: Optimizer, folder: Path) -> None:
    """Write all that there is in a process."""
    with (folder / f"end {rank}.pt").open("wb") as file:
        torch.save([net.state_dict(), optimizer.state_dict()], file)


def disturbed(fisher: str, rank: int, size: int, folder: Path, fate: Fate | None) -> None:
    """Go on from the last checkpoint until the end or the fate."""
    meet(rank, size, folder / "meeting")
    net, optimizer = start(fisher)
    steps = range(example.resume(folder / "run.pt", net, optimizer), STEPS)
    if fate is not None and fate.rank == rank:
        BY_NAME[fate.place](fate.number)
    example.train(net, optimizer, data(), steps, folder / "run.pt")
    end(rank, net, optimizer, folder)
    os._exit(0)  # nobody waits for the others


def attempt(fisher: str, size: int, folder: Path, fate: Fate | None) -> bool:
    """Let processes train until one is killed, and kill the others, as a launcher does.

    Returns:
        Whether they came to the end.
    """
    (folder / "meeting").unlink(missing_ok=True)
    processes = [
        fork.Process(target=disturbed, args=(fisher, rank, size, folder, fate))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    running = {process.sentinel: process for process in processes}
    while running:
        ended = wait(list(running), timeout=HANGS)
        assert ended, f"they wait for each other: {fisher}, {size}, {fate}"
        gone = [running.pop(sentinel) for sentinel in ended]
        for process in gone:
            process.join()
        if any(process.exitcode for process in gone):
            assert fate is not None, f"a process failed: {fisher}, {size}"
            processes[fate.rank].join(HANGS)
            assert processes[fate.rank].exitcode == -signal.SIGKILL, f"{fisher}, {size}, {fate}"
            for process in running.values():
                process.kill()
                process.join()
            return False
    return True


def undisturbed(
    fisher: str, rank: int, segments: list[Segment], folder: Path, everyone: Barrier
) -> None:
    """Walk all segments; the objects of a process that stays stay."""
    (net, optimizer), done = start(fisher), 0
    for size, first, last in segments:
        if rank < size:
            meet(rank, size, folder / f"meeting {first}")
            if done < first:  # it joins
                assert example.resume(folder / "run.pt", net, optimizer) == first
            example.train(net, optimizer, data(), range(first, last), folder / "run.pt")
            done = last
            dist.destroy_process_group()
        everyone.wait(HANGS)
    if done == STEPS:
        end(rank, net, optimizer, folder)


def joined(segments: list[Segment]) -> list[Segment]:
    """Join segments of as many processes, and leave out empty ones."""
    found: list[Segment] = []
    for size, first, last in segments:
        if found and found[-1].size == size:
            found[-1] = found[-1]._replace(last=last)
        elif last > first:
            found.append(Segment(size, first, last))
    return found


def numbers(folder: Path, rank: int) -> dict[str, Tensor]:
    """Return all that a process held at the end, by name."""
    net, optimizer = torch.load(folder / f"end {rank}.pt", weights_only=True)
    momenta = {f"momentum {n}": s["momentum_buffer"] for n, s in optimizer["state"].items()}
    assert len(momenta) == 4
    return net | momenta


def differences(fisher: str, fates: Iterator[Fate | None], folder: Path) -> tuple[set[str], list]:
    """Train with and without a disturbance; name what differs, and list who was killed."""
    for name in ("disturbed", "undisturbed"):
        (folder / name).mkdir(parents=True)
    killed, segments, done = [], [], 0
    for size, fate in zip(itertools.cycle(SIZES), fates, strict=False):
        is_through = attempt(fisher, size, folder / "disturbed", fate)
        file = folder / "disturbed" / "run.pt"
        saved = torch.load(file, weights_only=True)["step"] if file.exists() else 0
        segments.append(Segment(size, done, saved))
        done = saved
        if is_through:
            break
        killed.append((size, saved, *fate))
    everyone = fork.Barrier(max(SIZES))
    place = folder / "undisturbed"
    processes = [
        fork.Process(target=undisturbed, args=(fisher, rank, joined(segments), place, everyone))
        for rank in range(max(SIZES))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    expected = numbers(place, 0)
    ends = [numbers(folder / "disturbed", rank) for rank in range(size)]
    found = {n for end in ends for n, value in expected.items() if not torch.equal(end[n], value)}
    return found, killed


def main(kind: str, folder: Path) -> None:
    """Print by case what differs, and how often a process was killed where."""
    start("shared")  # what is imported on first use is imported once
    gc.freeze()  # nor do processes look through what they inherit
    wanted, draw, differs, killed = int(kind), random.Random(0), {}, []
    for number, fisher in enumerate(itertools.cycle(reversed(FISHERS))):
        if len(killed) >= wanted:
            break
        most = min(MOST, wanted - len(killed))
        few = itertools.chain(itertools.islice(fates(draw), most), [None])
        found, those = differences(fisher, few, folder / str(number))
        killed += those
        if found:
            differs[f"{number} {fisher} {those}"] = sorted(found)
    print(json.dumps([differs, Counter(place for *_, place, _ in killed), len(killed)]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[4]))
