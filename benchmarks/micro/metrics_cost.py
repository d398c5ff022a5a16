"""What a call of `sngd.metrics` takes, after a refresh and between two, beside a step of training.

make bench-metrics                         # on one thread of the CPU
make bench-metrics ARGS="--device cuda"    # on this machine's GPU
"""

import platform
import time
from collections.abc import Callable
from statistics import median
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import sngd_compile as sngd
from workloads import COMPILED_WORKLOADS, Workload

TIMED, WARM_UP = 9, 12
"""Calls of each kind; steps after which only periodic refreshes are left."""

console = Console(width=160)


def timed(device: torch.device, call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return 1e3 * (time.perf_counter() - start)


def wait(device: torch.device) -> None:
    """Let a GPU finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(workload: Workload, device: torch.device) -> tuple[int, list[list[float]]]:
    """Count the layers; time steps, refreshes, calls after a refresh and calls between two."""
    net = sngd.reconstruct(workload.model().to(device))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    batches = workload.batches()

    def step(inputs: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), labels).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    def batch() -> list[Tensor]:
        return [part.to(device) for part in next(batches)]

    for _ in range(WARM_UP):
        step(*batch())
    times: list[list[float]] = [[], [], [], []]
    for _ in range(TIMED):
        times[0].append(timed(device, lambda: step(*batch())))
        with torch.no_grad():  # what a refresh needs is a sum that is not empty
            for layer in sngd.fisher_layers(net).values():
                layer.sum.copy_(layer.factor)
                layer.tally[0] = 1
        times[1].append(timed(device, lambda: sngd.refresh_(net)))
        times[2].append(timed(device, lambda: sngd.metrics(net)))
        times[3].append(timed(device, lambda: sngd.metrics(net)))
    return len(sngd.fisher_layers(net)), times


def shown(times: list[float]) -> str:
    """Median, least and largest."""
    return f"{median(times):.2f} ({min(times):.2f} to {max(times):.2f})"


def main(device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu") -> None:
    """Print the table."""
    torch.set_num_threads(1)
    where = torch.device(device)
    columns = ("network", "layers", "step", "refresh", "metrics after it", "metrics between")
    table = Table(*columns, title="milliseconds: median (least to largest)", title_justify="left")
    for workload in COMPILED_WORKLOADS:
        layers, times = measure(workload, where)
        table.add_row(workload.name, str(layers), *map(shown, times))
    on_gpu = where.type == "cuda"
    named = torch.cuda.get_device_name(where) if on_gpu else f"{platform.machine()}, one thread"
    console.print(f"{named}, torch {torch.__version__}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
