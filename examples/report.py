"""What a comparison of runs shows: a table, a plot and a JSON file, with one goal for all runs."""

import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.table import Table

from training import Run

COLOURS = {"SGD": "#777777", "AdamW": "#0072B2", "SNGD": "#D55E00"}


@dataclass(frozen=True)
class Result:
    """How one method did; accuracies are on the test set, 0 to 1."""

    method: str
    rate: float
    milliseconds_per_step: float
    steps_to_goal: int | None
    seconds_to_goal: float | None
    accuracy_at_goal: float | None
    final_loss: float
    final_accuracy: float


def common_goal(runs: list[Run]) -> float:
    """The lowest training loss that every run reaches; runs that diverged have no say."""
    lowest = [
        min(point.training_loss for point in run.points) for run in runs if math.isfinite(run.loss)
    ]
    return max(lowest, default=math.inf)


def summarise(run: Run, goal: float) -> Result:
    """Measures a finished run by the first point whose training loss is at most the goal."""
    reached = next((point for point in run.points if point.training_loss <= goal), None)
    return Result(
        run.method.name,
        run.rate,
        1000 * run.seconds_per_step,
        reached.step if reached else None,
        reached.step * run.seconds_per_step if reached else None,
        reached.test_accuracy if reached else None,
        run.points[-1].training_loss,
        run.points[-1].test_accuracy,
    )


def table(results: list[Result], goal: float, title: str) -> Table:
    """The results as a table for the terminal, one method a column."""
    shown = Table("", *(result.method for result in results), title=title)
    until = f"until the training loss is {goal:.3g}"
    rows: dict[str, Callable[[Result], str]] = {
        "learning rate, the best of four": lambda result: f"{result.rate:g}",
        "milliseconds a step, mean": lambda result: f"{result.milliseconds_per_step:.2f}",
        f"steps {until}": lambda result: at_goal(result.steps_to_goal, "d"),
        f"seconds {until}": lambda result: at_goal(result.seconds_to_goal, ".2f"),
        "test accuracy at that point": lambda result: at_goal(result.accuracy_at_goal, ".1%"),
        "training loss at the end": lambda result: f"{result.final_loss:.3g}",
        "test accuracy at the end": lambda result: f"{result.final_accuracy:.1%}",
    }
    for name, cell in rows.items():
        shown.add_row(name, *map(cell, results))
    for column in shown.columns[1:]:
        column.justify = "right"
    return shown


def at_goal(value: float | None, form: str) -> str:
    """A number where a run reached the goal, or that it did not."""
    return "not reached" if value is None else format(value, form)


def show_losses_along(panel: Axes) -> None:
    """Makes the upright axis one of training losses: logarithmic, with plain numbers."""
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_ylabel("training loss")


def save_plot(runs: list[Run], goal: float, title: str, path: Path) -> None:
    """Draws the loss of every run over steps and over seconds."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    over_steps, over_seconds = figure.subplots(1, 2, sharey=True)
    for run in runs:
        look = {"label": f"{run.method.name}, lr {run.rate:g}", "color": COLOURS[run.method.name]}
        steps = [point.step for point in run.points]
        losses = [point.training_loss for point in run.points]
        over_steps.plot(steps, losses, **look)
        over_seconds.plot([step * run.seconds_per_step for step in steps], losses, **look)
    for panel, label in ((over_steps, "steps"), (over_seconds, "seconds")):
        panel.axhline(goal, color="black", linewidth=0.8, linestyle=":")
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    show_losses_along(over_steps)
    over_steps.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def save_json(results: list[Result], settings: dict[str, Any], path: Path) -> None:
    """Writes the results with what is needed to run them again."""
    machine = {
        "device": "cpu",
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "matplotlib": mpl.__version__,
    }
    content = {**settings, **machine, "results": [asdict(result) for result in results]}
    path.write_text(json.dumps(content, indent=2) + "\n")
