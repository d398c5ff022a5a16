"""The local Fishers of `Config` against each other: the training loss after as many steps.

Every one has the same number of learning rates to choose from, a decade apart, since the steps of
the two-sided ones have another unit. The table has the seconds beside.

    make bench-fishers ARGS="--tasks mlp --tasks autoencoder"
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from torch import nn

import sngd_compile as sngd
from contenders import (
    REFERENCE,
    Contender,
    Recipe,
    Trainee,
    in_trust_region,
    limit_to_one_thread,
)
from paper.paper_contenders import TWO_SIDED
from study.convergence import RESULTS, wanted
from study.protocol import Protocol, study
from study.race import Budget
from study.study_report import load_average, save, table

console = Console(width=120)


def on_network(config: sngd.Config, model: nn.Module, recipe: Recipe) -> Trainee:
    """SGD with momentum on the network reconstructed with `config`, in its trust region."""
    return in_trust_region(sngd.reconstruct(model, config), recipe)


def contender(name: str, rates: tuple[float, ...], config: sngd.Config) -> Contender:
    """One local Fisher."""
    return Contender(name, partial(on_network, config), rates)


ONE_SIDED = (0.03, 0.1, 0.01, 0.3)
EMPIRICAL = (1e-2, 1e-3, 1e-4, 1e-5)
"""Rates of metrics that shrink with the gradients, so that steps grow."""


FISHERS = (
    contender("shared", ONE_SIDED, sngd.Config()),
    contender("kronecker", EMPIRICAL, TWO_SIDED),
)


def main(
    tasks: Annotated[list[str] | None, typer.Option(help="A task; may be repeated.")] = None,
    steps: Annotated[int, typer.Option(min=10, help="Of each.")] = 400,
    seeds: Annotated[int, typer.Option(min=1, help="Fresh ones, after tuning.")] = 3,
    rates: Annotated[int, typer.Option(min=1, max=4, help="Tried for each.")] = 4,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Train networks with one local Fisher at a time, and with plain SGD."""
    limit_to_one_thread()
    for task in wanted(tasks):
        load = load_average()
        among = (REFERENCE, *FISHERS)
        protocol = Protocol(among, rates, seeds, Budget(steps, "steps"), REFERENCE)
        result = study(protocol, task, task.load(), console.print)
        console.print(table(result))
        paths = save(result, f"local_fishers_{task.name}", steps, load, output)
        console.print("Results: " + ", ".join(map(str, paths)))


if __name__ == "__main__":
    typer.run(main)
