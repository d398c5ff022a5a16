"""The local Fishers of `Config` against each other: the training loss after as many steps.

Every one has the same number of learning rates to choose from, a decade apart, since the steps of
the two-sided ones have another unit. The table has the seconds beside.

    make bench-fishers ARGS="--tasks mlp --tasks autoencoder"
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from torch import Tensor, nn

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
from sngd_compile.sampling import Distribution
from study.convergence import RESULTS, wanted
from study.protocol import Protocol, study
from study.race import Budget
from study.study_report import load_average, save, table

console = Console(width=120)


def on_network(config: sngd.Config, model: nn.Module, recipe: Recipe) -> Trainee:
    """SGD with momentum on the network reconstructed with `config`, in its trust region."""
    network = sngd.reconstruct(model, config)
    if config.output_gradients == "sampled":
        recipe = replace(recipe, criterion=Sampled(network, recipe.criterion))
    return in_trust_region(network, recipe)


class Sampled(nn.Module):
    """A loss that first shows the network the gradients of targets that it draws itself."""

    def __init__(self, network: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.network, self.criterion = network, criterion

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sample, then return the loss."""
        classifies = isinstance(self.criterion, nn.CrossEntropyLoss)
        distribution: Distribution = "categorical" if classifies else "gaussian"
        sngd.sample_fisher_(self.network, outputs, distribution=distribution)
        loss: Tensor = self.criterion(outputs, targets)
        return loss


def contender(name: str, rates: tuple[float, ...], config: sngd.Config) -> Contender:
    """One local Fisher."""
    return Contender(name, partial(on_network, config), rates)


ONE_SIDED = (0.03, 0.1, 0.01, 0.3)
EMPIRICAL = (1e-2, 1e-3, 1e-4, 1e-5)
"""Rates of metrics that shrink with the gradients, so that steps grow."""

SAMPLED = (1e-1, 1e-2, 1e-3, 1e-4)

FISHERS = (
    contender("shared", ONE_SIDED, sngd.Config()),
    contender("kronecker", EMPIRICAL, TWO_SIDED),
    contender("kronecker, sampled", SAMPLED, TWO_SIDED.replace(output_gradients="sampled")),
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
