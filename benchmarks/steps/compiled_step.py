"""Step time of the compiled reconstructed network over the compiled plain one's, and compile time.

Both take turns in one process on one thread, as in `step_time.py`. Caches of compiled code are off;
networks are compiled several times, in alternating order.
Nothing is shown unless the first step, in which every root is the identity, has the plain loss.
"""

import statistics
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, cast

import torch
import torch._functorch.config
import torch._inductor.config
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from torch._inductor.utils import fresh_cache

import sngd_compile as sngd
from contenders import Recipe, Trainee, limit_to_one_thread, plain_sgd
from interleave import CYCLE, WARM_UP, Ratio, Times, take_turns
from steps.gate import GateError
from steps.step_report import verdict
from workloads import COMPILED_WORKLOADS, Workload

LOSS_TOLERANCE = 1e-4
"""Of the first loss, relative: it is summed in float32 on both ways."""

PLAIN, NATURAL = "SGD", "SNGD"
LARGEST_FIRST = 1.5
"""Seconds of the first step over the plain network's that are wanted at most."""

console = Console()


@dataclass(frozen=True)
class Result:
    """What one workload took.

    Args:
        workload: Its name.
        bar: Largest mean step time over the plain one's that is wanted.
        step: Mean step time over the plain one's.
        milliseconds: Mean step time, plain and reconstructed.
        firsts: Seconds of first steps, pairs of plain and reconstructed: nearly all is compilation.
    """

    workload: str
    bar: float
    step: Ratio
    milliseconds: tuple[float, float]
    firsts: Sequence[tuple[float, float]]


def compiled(network: nn.Module, backend: str) -> Trainee:
    """SGD on a network that is compiled to one graph."""
    whole = cast(nn.Module, torch.compile(network, backend=backend, fullgraph=True))
    return plain_sgd(whole, Recipe(0.03))


def first_step(trainee: Trainee, workload: Workload) -> tuple[float, float]:
    """Return the seconds and the loss of the step that compiles."""
    inputs, labels = next(workload.batches())
    with fresh_cache():  # compiled C++ is found on disk otherwise
        start = time.perf_counter()
        loss = trainee.step(inputs, labels)
        return time.perf_counter() - start, float(loss)


def measure(workload: Workload, backend: str, steps: int, compilations: int) -> Result:
    """Time both networks on one workload; raise GateError where they differ."""
    model = workload.model()
    networks = {PLAIN: model, NATURAL: sngd.reconstruct(model)}
    firsts = []
    for index in range(compilations):
        torch._dynamo.reset()
        trainees = {name: compiled(deepcopy(net), backend) for name, net in networks.items()}
        turns = sorted(trainees, reverse=index % 2 == 1)
        taken = {name: first_step(trainees[name], workload) for name in turns}
        loss, expected = taken[NATURAL][1], taken[PLAIN][1]
        if not abs(loss - expected) <= LOSS_TOLERANCE * abs(expected):
            raise GateError(
                f"{workload.name}: its first loss is {loss}, the plain one's {expected}"
            )
        firsts.append((taken[PLAIN][0], taken[NATURAL][0]))
    take_turns(trainees, workload.batches(), WARM_UP)
    times = take_turns(trainees, workload.batches(), steps)
    return Result(
        workload.name,
        workload.bar,
        Ratio.of(times[NATURAL], times[PLAIN]),
        (_milliseconds(times[PLAIN]), _milliseconds(times[NATURAL])),
        firsts,
    )


def _milliseconds(times: Times) -> float:
    return 1e3 * sum(times.seconds) / len(times.seconds)


def results_table(result: Result) -> Table:
    """Both ratios of one workload, and the times that they are of."""
    step, milliseconds = result.step, result.milliseconds
    ratios = [natural / plain for plain, natural in result.firsts]
    compilation = statistics.median(ratios)
    table = Table("", PLAIN, NATURAL, "ratio", "bar", title=result.workload)
    table.add_row(
        "step, ms",
        *(f"{time:.2f}" for time in milliseconds),
        f"{step.mean:.2f} ({step.low:.2f} to {step.high:.2f})",
        verdict(step.mean, result.bar),
    )
    table.add_row(
        "first step, s",
        *(f"{statistics.median(times):.1f}" for times in zip(*result.firsts, strict=True)),
        f"{compilation:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        verdict(compilation, LARGEST_FIRST),
    )
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def main(
    steps: Annotated[int, typer.Option(min=1, help="Rounded up to whole cycles.")] = 3 * CYCLE,
    backend: Annotated[str, typer.Option(help="Of torch.compile.")] = "inductor",
    compilations: Annotated[int, typer.Option(min=1, help="First steps; the median counts.")] = 5,
) -> None:
    """Time compiled training steps, reconstructed and plain."""
    limit_to_one_thread()
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        # The first compilation of a process loads the compiler.
        torch.compile(nn.Linear(2, 2), backend=backend)(torch.ones(1, 2)).sum().backward()
        for workload in COMPILED_WORKLOADS:
            try:
                result = measure(workload, backend, -(-steps // CYCLE) * CYCLE, compilations)
            except GateError as error:
                console.print(f"Nothing is timed, the network is wrong. {error}")
                raise typer.Exit(1) from error
            console.print(results_table(result))


if __name__ == "__main__":
    typer.run(main)
