"""Time of a refresh on several processes: by kind of root, and by layers, width and batch.

make bench-refresh                      # 1, 2 and 4 processes on this machine, gloo
make bench-refresh ARGS="--most 2"

Decompositions that are shared out, and each process doing all of them, take turns. Processes have
one thread each; where there are fewer cores than processes the seconds of the processor tell more
than those of the clock. Writes benchmarks/results/processes.md.
"""

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import typer
from scipy.optimize import nnls
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import sngd_compile as sngd
from sngd_compile.training import refresh
from sngd_compile.training.joint_roots import next_joint_roots
from steps.memory_at_size import BLOCKS, LLAMA
from steps.step_report import processor

RESULTS = Path(__file__).parents[1] / "results"
ROUNDS = 5
EACH_ALL, SHARED_OUT = "each all", "shared out"
PROCESSES = (1, 2, 4)
PREDICTED = (8, 1024)

Times = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Case:
    """Equal linear layers with a bias, of as many inputs as outputs, and rows of a batch."""

    name: str
    config: sngd.Config
    layers: int = 8
    width: int = 256
    batch: int = 64

    def build(self) -> nn.Module:
        """Make the network."""
        pairs = ((nn.Linear(self.width, self.width), nn.Tanh()) for _ in range(self.layers))
        return nn.Sequential(*(part for pair in pairs for part in pair))


ROOTS = (
    Case("exact", sngd.Config(rank=None)),
    Case("sketches", sngd.Config()),
    Case("symmetric", sngd.Config(root="symmetric", rank=None)),
    Case("kronecker", sngd.Config(fisher="kronecker", rank=None)),
)
SIZES = tuple(
    Case("sketches", sngd.Config(), *size)
    for size in itertools.product((2, 8), (512, 1024), (64, 512))
)


class Report(NamedTuple):
    """What the processes have told: the longest times of a refresh, and the bytes of each."""

    times: Times
    sent: tuple[int, ...]


def each_all(layers: Any, group: Any) -> Any:
    """Find every root in every process."""
    return next_joint_roots(layers, None)


def timed(net: nn.Module, trained: nn.Module, case: Case) -> tuple[float, float]:
    """Observe a batch, and return the clock's and the processor's seconds of a refresh."""
    for layer in sngd.fisher_layers(net).values():
        layer.schedule.restore(0, 0)
    trained.zero_grad()
    trained(torch.randn(case.batch, case.width)).square().mean().backward()
    dist.barrier()
    start = time.perf_counter(), time.process_time()
    sngd.refresh_(net)
    dist.barrier()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def process(rank: int, size: int, meeting: str, case: Case, results: Any) -> None:
    """Time one network in one of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    torch.manual_seed(0)
    net = sngd.reconstruct(case.build(), case.config)
    trained = DistributedDataParallel(net)
    ways = {EACH_ALL: each_all, SHARED_OUT: next_joint_roots}
    found: Times = {way: [] for way in ways}
    for turn in range(ROUNDS + 1):
        for way, roots in ways.items():
            with mock.patch.object(refresh, "next_joint_roots", roots):
                pair = timed(net, trained, case)
            if turn:  # the first one warms up
                found[way].append(pair)
    results.put(Report(found, sngd.explain(net).sent_bytes))
    dist.destroy_process_group()


def measured(case: Case, size: int) -> Report:
    """Start the processes; of each refresh the longest time of any process counts."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [(rank, size, f"{folder}/meeting", case, results) for rank in range(size)]
        processes = [context.Process(target=process, args=given) for given in arguments]
        for each in processes:
            each.start()
        reports = [results.get() for _ in processes]
        for each in processes:
            each.join()
    times = {
        way: [
            (max(wall for wall, _ in turn), max(busy for _, busy in turn))
            for turn in zip(*(report.times[way] for report in reports), strict=True)
        ]
        for way in (EACH_ALL, SHARED_OUT)
    }
    return Report(times, reports[0].sent)


@dataclass(frozen=True)
class Point:
    """A network of equal layers on some processes: seconds of a refresh, most bytes sent by one."""

    layers: int
    inputs: int
    outputs: int
    processes: int
    seconds: float
    sent: float


@dataclass(frozen=True)
class Model:
    """What a layer costs on p processes, and how far off a time was at the most.

    Args:
        seconds: Of `1`, `O D`, which each process does, and of `D / p`, which is shared out.
        sent: Bytes of `1`, `D`, which each process sends, and of `D / p`.
        misfit: Of seconds, relative.
    """

    seconds: Sequence[float]
    sent: Sequence[float]
    misfit: float

    def of(self, inputs: int, outputs: int, processes: int) -> tuple[float, float]:
        """Predict seconds and bytes of a layer."""
        terms = _terms(inputs, outputs, processes)
        seconds, sent = (
            sum(a * b for a, b in zip(term, factors, strict=True))
            for term, factors in zip(terms, (self.seconds, self.sent), strict=True)
        )
        return seconds, sent


def _terms(inputs: int, outputs: int, processes: int) -> tuple[list[float], list[float]]:
    shared = inputs / processes
    return [1.0, inputs * outputs, shared], [1.0, inputs, shared]


def fitted(points: Sequence[Point]) -> Model:
    """Fit both, each point with the same relative weight; no cost is below 0."""

    def solved(which: int, costs: Sequence[float]) -> tuple[list[float], float]:
        terms = [_terms(p.inputs, p.outputs, p.processes)[which] for p in points]
        known = np.array([cost / p.layers for cost, p in zip(costs, points, strict=True)])
        matrix = np.array(terms) / known[:, None]
        found = nnls(matrix, np.ones(len(points)))[0]
        return found.tolist(), float(np.abs(matrix @ found - 1).max())

    seconds, misfit = solved(0, [p.seconds for p in points])
    return Model(seconds, solved(1, [p.sent for p in points])[0], misfit)


def medians(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the medians of both times, in milliseconds."""
    wall, busy = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    return wall, busy


def lines_of(roots: Sequence[Case], sizes: Sequence[Case], most: int) -> Iterator[str]:
    """The page, line by line as it is measured."""
    counts = [count for count in PROCESSES if count <= most]
    yield (
        f"# A refresh on several processes\n\nprocessor: {processor()}, {os.cpu_count()} cores, "
        f"gloo, one thread each, torch: {torch.__version__}\n\n`make bench-refresh`: milliseconds "
        f"of the slowest process, medians of {ROUNDS}.\n\n## Kinds of roots\n\n8 layers, D = 257.\n"
    )
    yield "| roots | processes | each all: clock, processor | shared out: clock, processor |"
    yield "|---|---|---|---|"
    for case, count in itertools.product(roots, counts):
        both = [medians(times) for times in measured(case, count).times.values()]
        cells = [f"{wall:.0f}, {busy:.0f}" for wall, busy in both]
        yield f"| {case.name} | {count} | {' | '.join(cells)} |"
    yield "\n## Layers, width, batch, processes\n\nSketches, O = D - 1 outputs, shared out.\n"
    yield "| layers | D | batch | processes | clock, ms | processor, ms | sent by one, KiB |"
    yield "|---|---|---|---|---|---|---|"
    points = []
    for case, count in itertools.product(sizes, counts):
        report = measured(case, count)
        wall, busy = medians(report.times[SHARED_OUT])
        sent = max(report.sent, default=0)
        points.append(
            Point(case.layers, case.width + 1, case.width, count, busy / 1e3, max(sent, 1))
        )
        row = (case.layers, case.width + 1, case.batch, count, f"{wall:.0f}", f"{busy:.0f}")
        yield f"| {' | '.join(map(str, row))} | {sent / 1024:.0f} |"
    yield prediction(points)


def prediction(points: Sequence[Point]) -> str:
    """What the fit says of Llama 7B."""
    model = fitted([point for point in points if point.processes > 1])
    layers = [(i, o) for i, o, number in LLAMA for _ in range(number)] * BLOCKS
    (fixed, moved, shared), (_, always, once) = model.seconds, model.sent
    rows = []
    for count in PREDICTED:
        costs = [model.of(inputs, outputs, count) for inputs, outputs in layers]
        seconds, sent = (sum(column) for column in zip(*costs, strict=True))
        rows.append(f"| {count} | {seconds:.0f} | {sent / 2**20:.0f} |")
    return (
        "\n## Prediction for 8 and 1024 processes\n\n"
        f"Fitted to a layer on p > 1 processes: {1e3 * fixed:.2f} + {1e9 * moved:.2f} O D / "
        f"1,000,000 + {1e6 * shared:.2f} D / (1000 p) milliseconds of the processor, the worst "
        f"misfit {model.misfit:.0%}; {always:.0f} D + {once:.0f} D / p bytes that a process sends "
        "for a refresh and the observed steps before it. **Not measured**: the fit, put to the "
        f"{len(layers)} linear layers of Llama 7B, one thread of this processor for each process."
        "\n\n"
        "| processes | refresh, s | sent by one, MiB |\n|---|---|---|\n" + "\n".join(rows) + "\n\n"
        "What each process does for itself, moving `w'`, gradient and momentum, does not get less; "
        "what it sends of the statistics does not either, and its share of the roots does.\n"
    )


def main(
    most: Annotated[int, typer.Option(help="Processes, at the most.")] = 4,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Measure; print and write the page."""
    os.environ["OMP_NUM_THREADS"] = "1"
    lines = []
    for line in lines_of(ROOTS, SIZES, most):
        print(line, flush=True)
        lines.append(line)
    (output / "processes.md").write_text("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
