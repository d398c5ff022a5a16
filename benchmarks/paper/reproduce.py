"""Every experiment of the paper, each also alone, on one page.

Every contender of an experiment takes the same number of steps. An experiment is stored as it
ends, and the page is made of all that are stored, so that a run can go on where one was broken off.

    make reproduce                                  # all, about half an hour of one core
    make reproduce ARGS="--only mlp --only resnet"  # some, by a part of their names
    make reproduce ARGS="--resume"                  # those that have no result of this size yet
    make reproduce ARGS="--quick"                   # a few steps of each, into build/reproduce
    make reproduce ARGS="--data path/to/sets"       # on MNIST, CIFAR-10, Penn Treebank, where there

`mnist`, `cifar10` and `ptb` in the folder of `--data` hold idx files, python or binary batches, and
`ptb.train.txt` and `ptb.test.txt`. Fashion-MNIST and Python's sources stand in for what is missing.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from contenders import limit_to_one_thread
from data import DataError
from paper.experiments import EXPERIMENTS, Experiment, Sources
from paper.reproduce_page import page, table
from study.protocol import Protocol, Study, study
from study.race import Budget
from study.study_report import content_of, load_average, save_plot
from tasks import Task

RESULTS = Path(__file__).parents[1] / "results"
QUICK_RESULTS = Path("build/reproduce")
PAGE = "reproduce.md"

app = typer.Typer(add_completion=False)
console = Console(width=120)


@dataclass(frozen=True)
class Size:
    """How much of an experiment is run; None for its own number of steps, batch and measure."""

    rates: int
    seeds: int
    points: int
    steps: int | None = None
    batch_size: int | None = None
    measured: int | None = None

    def of(self, task: Task) -> Task:
        """The task at this size."""
        return replace(
            task,
            steps=self.steps or task.steps,
            batch_size=self.batch_size or task.batch_size,
            measured=self.measured or task.measured,
        )


QUICK = Size(rates=1, seeds=1, points=2, steps=4, batch_size=8, measured=16)


def wanted(names: list[str] | None) -> list[Experiment]:
    """The experiments whose names contain one of these texts; all without any."""
    for name in names or []:
        if not any(name in experiment.name for experiment in EXPERIMENTS):
            known = ", ".join(experiment.name for experiment in EXPERIMENTS)
            raise typer.BadParameter(f"no experiment is called {name!r}; there are {known}")
    return [e for e in EXPERIMENTS if any(name in e.name for name in names or [""])]


def is_stored(path: Path, size: Size, task: Task) -> bool:
    """Whether there is a result of this size, on as many seeds and rates or more."""
    if not path.exists():
        return False
    content = json.loads(path.read_text())
    found = [content[key] for key in ("limit", "points", "batch_size")]
    enough = content["rates"] >= size.rates and content["seeds"] >= size.seeds
    return enough and found == [task.steps, size.points, task.batch_size]


@contextmanager
def bar(experiment: Experiment, task: Task, size: Size) -> Iterator[Callable[[], None]]:
    """Show how far an experiment is; what is given moves the bar by a step."""
    rates = sum(len(contender.rates[: size.rates]) for contender in experiment.contenders)
    total = rates * task.steps / 2 + len(experiment.contenders) * size.seeds * task.steps
    columns = (TextColumn("{task.description}"), BarColumn())
    # No thread that draws: its time would count as that of whoever takes a step.
    progress = Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, auto_refresh=False
    )
    last = time.monotonic()
    with progress:
        shown = progress.add_task(f"{experiment.name}: {task.title}", total=total)

        def advance() -> None:
            nonlocal last
            progress.advance(shown)
            if time.monotonic() - last > 1:
                progress.refresh()
                last = time.monotonic()

        yield advance


def run(experiment: Experiment, task: Task, size: Size, folder: Path) -> None:
    """Run one experiment and store it: a JSON file with every point of every run, and a plot."""
    load_before = load_average()
    with bar(experiment, task, size) as advance:
        budget = Budget(task.steps, "steps", size.points)
        protocol = Protocol(
            experiment.contenders,
            size.rates,
            size.seeds,
            budget,
            experiment.contenders[0],
            advance,
        )
        result = study(protocol, task, task.load(), lambda _: None)
    store(result, experiment, load_before, folder)


def store(result: Study, experiment: Experiment, load_before: float, folder: Path) -> None:
    """Write the plot, then the JSON file: where that is, the experiment is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"title": result.task.title, **content_of(result, result.task.steps, load_before)}
    save_plot(result, folder / f"{experiment.name}.png")
    console.print(table(experiment, content))
    (folder / f"{experiment.name}.json").write_text(json.dumps(content, indent=1) + "\n")


@app.command()
def main(
    only: Annotated[list[str] | None, typer.Option(help="Part of a name; may be repeated.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fresh ones, after tuning.")] = 3,
    rates: Annotated[int, typer.Option(min=1, help="Tried for each.")] = 3,
    quick: Annotated[bool, typer.Option(help="A few steps of each, one seed and rate.")] = False,
    resume: Annotated[bool, typer.Option(help="Leave out what has a result already.")] = False,
    data: Annotated[Path | None, typer.Option(help="It holds mnist, cifar10 or ptb.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for page and results.")] = None,
) -> None:
    """Run the experiments of the paper and assemble the page."""
    limit_to_one_thread()
    size = QUICK if quick else Size(rates, seeds, points=40)
    output = output or (QUICK_RESULTS if quick else RESULTS)
    folder = output / "reproduce"
    for experiment in wanted(only):
        try:
            task = size.of(experiment.task(Sources.of(data)))
            if resume and is_stored(folder / f"{experiment.name}.json", size, task):
                console.print(f"{experiment.name}: there is a result already")
                continue
            run(experiment, task, size, folder)
        except DataError as error:
            raise typer.BadParameter(str(error)) from error
        (output / PAGE).write_text(page(folder))
    console.print(f"The page: {output / PAGE}")


if __name__ == "__main__":
    app()
