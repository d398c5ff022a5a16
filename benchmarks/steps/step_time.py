"""Step time of the default configuration over plain SGD's, beside other optimizers.

All take turns in one process on one thread. After a warm-up whole cycles are timed, so the mean
holds its share of observed steps and of refreshes. Nothing is shown unless the reconstructed
network computes what the plain one does and its gradient is the natural one.
"""

import copy
import math
import warnings
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import sngd_compile as sngd
from contenders import (
    BUILT_IN,
    REFERENCE,
    SNGD,
    Contender,
    Recipe,
    Trainee,
    chosen,
    limit_to_one_thread,
)
from interleave import CYCLE, WARM_UP, take_turns
from peers import PEERS
from steps.gate import GateError, check_network
from steps.memory import fisher_memory, memory_table
from steps.step_report import Result, Row, save, step_table
from tasks import TIMED as WORKLOADS
from workloads import Workload

RESULTS = Path(__file__).parents[1] / "results"
RATE = 1e-6
"""Of everyone: so small that activations stay alike, on which the time of a pooling hangs."""
ALL = (*BUILT_IN, *PEERS)

app = typer.Typer(add_completion=False)
console = Console()


def warmed_up(contender: Contender, workload: Workload) -> Trainee | str:
    """Train until only what is periodic is left; return why not where a package fails."""
    if not contender.installed:
        return "not installed"
    if contender.fits is not None and not contender.fits(workload.model()):
        return "has no hidden matrix"
    try:
        with warnings.catch_warnings():
            if contender.package:
                warnings.simplefilter("ignore")
            # Nobody clips: what a step costs is asked, and SNGD's loop needs no clipping.
            recipe = Recipe(RATE, workload.criterion, math.inf)
            trainee = contender.prepare(workload.model(), recipe)
            times = take_turns({contender.name: trainee}, workload.batches(), WARM_UP)
    except Exception as error:
        if contender.package is None:
            raise
        return f"fails: {type(error).__name__}"
    finite = torch.tensor(times[contender.name].loss).isfinite()
    return trainee if finite else "diverges"


def pass_gate(workload: Workload, trainee: Trainee) -> None:
    """Check the network before its first step and after the warm-up; raise GateError."""
    model = workload.model()
    inputs, labels = next(workload.batches())
    # Folded in float32, a weight that is rounded decides which side of a ReLU is taken.
    folded = sngd.fold(copy.deepcopy(trainee.network).double())
    pairs = (sngd.reconstruct(model), model), (trainee.network, folded)
    for network, plain in pairs:
        check_network(network, plain, inputs, labels, workload.criterion)


def measure(workload: Workload, contenders: list[Contender], steps: int) -> Result:
    """Time the contenders on one workload."""
    prepared = {contender.name: warmed_up(contender, workload) for contender in contenders}
    trainees = {name: made for name, made in prepared.items() if isinstance(made, Trainee)}
    memory = []
    if SNGD.name in trainees:
        pass_gate(workload, trainees[SNGD.name])
        memory = fisher_memory(trainees[SNGD.name].network)
    foreign = {contender.name for contender in contenders if contender.package}
    times = take_turns(trainees, workload.batches(), steps, may_fail=foreign)
    rows = []
    for name, made in prepared.items():
        if isinstance(made, str):
            rows.append(Row(name, not_run=made))
        elif times[name].failure:
            taken = len(times[name].seconds)
            rows.append(Row(name, not_run=f"fails after {taken} steps: {times[name].failure}"))
        else:
            bar = workload.bar if name == SNGD.name else None
            rows.append(Row.of(name, times[name], times[REFERENCE.name], bar))
    return Result(workload.name, workload.batch_size, rows, memory)


@app.command()
def main(
    steps: Annotated[int, typer.Option(min=CYCLE, help="Rounded up to whole cycles.")] = 3 * CYCLE,
    only: Annotated[list[str] | None, typer.Option(help="Part of a name; may be repeated.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Time training steps beside plain SGD's."""
    limit_to_one_thread()
    steps = -(-steps // CYCLE) * CYCLE
    contenders = chosen(only, ALL, REFERENCE)
    results = []
    for workload in WORKLOADS:
        console.print(f"{workload.name}: {steps} steps of each of {len(contenders)}")
        try:
            result = measure(workload, contenders, steps)
        except GateError as error:
            console.print(f"Nothing is timed, the network is wrong. {error}")
            raise typer.Exit(1) from error
        results.append(result)
        console.print(step_table(result))
        if result.memory:
            console.print(memory_table(f"Fisher layers of {result.workload}", result.memory))
    paths = save(results, steps, output)
    console.print("Results: " + ", ".join(map(str, paths)))


if __name__ == "__main__":
    app()
