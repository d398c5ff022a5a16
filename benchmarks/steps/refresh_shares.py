"""Time of a refresh on several processes: decompositions shared out, and each doing all of them.

make bench-refresh                      # 1, 2 and 4 processes on this machine, gloo
make bench-refresh ARGS="--most 2"

Both take turns. Processes have one thread each; where there are fewer cores than processes the
seconds of the processor tell more than those of the clock.
"""

import os
import platform
import statistics
import tempfile
import time
from typing import Annotated, Any
from unittest import mock

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.table import Table
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import sngd_compile as sngd
from sngd_compile.training import refresh
from sngd_compile.training.joint_roots import next_joint_roots

ROUNDS = 5
EACH_ALL, SHARED_OUT = "each all", "shared out"

Times = dict[str, list[tuple[float, float]]]


WIDTH = 256

CONFIGS = {
    "8 layers, D = 257, exact": sngd.Config(rank=None),
    "8 layers, D = 257, sketches": sngd.Config(),
    "8 layers, D = 257, symmetric": sngd.Config(root="symmetric", rank=None),
    "8 layers, D = 257, kronecker": sngd.Config(fisher="kronecker", rank=None),
}


def mlp() -> nn.Module:
    """Return a network of linear layers."""
    return nn.Sequential(*(part for _ in range(8) for part in (nn.Linear(WIDTH, WIDTH), nn.Tanh())))


def each_all(layers: Any, group: Any) -> Any:
    """Find every root in every process."""
    return next_joint_roots(layers, None)


def timed(net: nn.Module, trained: nn.Module) -> tuple[float, float]:
    """Observe a batch, and return the clock's and the processor's seconds of a refresh."""
    for layer in sngd.fisher_layers(net).values():
        layer.schedule.restore(0, 0)
    trained.zero_grad()
    trained(torch.randn(64, WIDTH)).square().mean().backward()
    dist.barrier()
    start = time.perf_counter(), time.process_time()
    sngd.refresh_(net)
    dist.barrier()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def process(rank: int, size: int, meeting: str, name: str, results: Any) -> None:
    """Time one network in one of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    torch.manual_seed(0)
    net = sngd.reconstruct(mlp(), CONFIGS[name])
    trained = DistributedDataParallel(net)
    ways = {EACH_ALL: each_all, SHARED_OUT: next_joint_roots}
    found: Times = {way: [] for way in ways}
    for turn in range(ROUNDS + 1):
        for way, roots in ways.items():
            with mock.patch.object(refresh, "next_joint_roots", roots):
                pair = timed(net, trained)
            if turn:  # the first one warms up
                found[way].append(pair)
    results.put(found)
    dist.destroy_process_group()


def measured(name: str, size: int) -> Times:
    """Start the processes; of each refresh the longest time of any process counts."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [(rank, size, f"{folder}/meeting", name, results) for rank in range(size)]
        processes = [context.Process(target=process, args=given) for given in arguments]
        for each in processes:
            each.start()
        reports = [results.get() for _ in processes]
        for each in processes:
            each.join()
    return {
        way: [
            (max(wall for wall, _ in turn), max(busy for _, busy in turn))
            for turn in zip(*(report[way] for report in reports), strict=True)
        ]
        for way in (EACH_ALL, SHARED_OUT)
    }


def medians(pairs: list[tuple[float, float]]) -> str:
    """Write the medians of both times."""
    columns = zip(*pairs, strict=True)
    return ", ".join(f"{1e3 * statistics.median(column):.0f}" for column in columns)


def main(most: Annotated[int, typer.Option(help="Processes, at the most.")] = 4) -> None:
    """Print the table."""
    os.environ["OMP_NUM_THREADS"] = "1"
    ways = [f"{way}: clock, processor" for way in (EACH_ALL, SHARED_OUT)]
    table = Table("network", "processes", *ways)
    table.title = "a refresh, milliseconds of the slowest process: medians"
    for name in CONFIGS:
        for size in (1, 2, 4):
            if size <= most:
                table.add_row(name, str(size), *map(medians, measured(name, size).values()))
    console = Console()
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
