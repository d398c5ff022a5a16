"""What a study shows: a table for the terminal, and a Markdown table, a JSON file and a plot."""

import json
import math
import os
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from rich.table import Table

from report import show_losses_along
from steps.step_report import conditions, table_lines
from study.protocol import Outcome, Study, crossing, spread
from study.race import Point, Run

PACKAGES = ("numpy", "asdfghjkl", "singd", "heavyball", "pytorch_optimizer")
TALLEST = 3.0
"""Largest loss that a plot shows, over those of the start: who diverges would flatten the rest."""

EXPLANATION = """\
All take turns in one process, on the same batches; whoever has used least of its {unit} takes the
next step. Each contender tried {rates} learning rates on seed 0, over half the budget of
{limit:.3g} {unit}, and then ran on {seeds} fresh seeds at the one with the lowest training loss; a
star marks a rate at the edge of those tried. The two goals are the training losses that {reference}
reaches on every seed, one within half the budget, one within all of it. Seconds are processor time
of one thread, without batches and measurements. Medians; in brackets the least and the largest of
the seeds. Load of the machine (processes that want to run, mean of a minute) before and after:
{load}."""


def load_average() -> float:
    """Processes that want to run, a mean of one minute; no number where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else math.nan


def versions() -> dict[str, str]:
    """The versions of what else is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def header(study: Study) -> list[str]:
    """The names of the columns."""
    return [
        study.task.name,
        "rate",
        "ms a step",
        *(f"{unit} to {goal:.3g}" for goal in study.goals for unit in ("steps", "seconds")),
        "training loss in the end",
        f"{study.task.judged} in the end",
    ]


def cells(study: Study, outcome: Outcome) -> list[str]:
    """One contender's row."""
    name, runs = outcome.tuned.contender.name, outcome.runs
    why = outcome.tuned.failure or next((run.failure for run in runs if run.failure), None)
    if why:
        return [name, *[""] * 7, why]
    reached = [[crossing(run, goal) for run in runs] for goal in study.goals]
    return [
        name,
        f"{outcome.tuned.best:g}{'*' if outcome.tuned.at_edge else ''}",
        spread([1e3 * run.seconds / run.steps for run in runs], ".1f"),
        *(text for places in reached for text in at_goal(places)),
        spread([run.loss for run in runs], ".3g"),
        spread([run.score for run in runs], ".1%" if study.task.classifies else ".3g"),
    ]


def at_goal(places: list[Point | None]) -> tuple[str, str]:
    """Steps and seconds to one goal."""
    steps = [place.steps if place else None for place in places]
    seconds = [place.seconds if place else None for place in places]
    return spread(steps, ".0f"), spread(seconds, ".2f")


def table(study: Study) -> Table:
    """The rows for the terminal, least and largest below the median."""
    shown = Table(*header(study), title=f"{study.task.title}, {study.data.name}")
    for outcome in study.outcomes:
        name, *values = cells(study, outcome)
        narrow = [text.replace(" (", "\n").replace(" to ", "-").rstrip(")") for text in values]
        shown.add_row(name.replace(" (", "\n("), *narrow)
    for column in shown.columns[1:]:
        column.justify = "right"
    return shown


def settings(study: Study) -> dict[str, Any]:
    """What was asked for, and what came of it."""
    protocol = study.protocol
    return {
        "task": study.task.name,
        "data": study.data.name,
        "batch_size": study.task.batch_size,
        **asdict(protocol.budget),
        "rates": protocol.rates,
        "seeds": protocol.seeds,
        "reference": protocol.reference.name,
        "goals": study.goals,
        "judged": study.task.judged,
    }


def outcome_lines(study: Study) -> list[str]:
    """The rows as lines of a page."""
    return table_lines(header(study), [cells(study, outcome) for outcome in study.outcomes])


def markdown(study: Study, name: str, under: dict[str, Any], load: str) -> str:
    """The rows as a page, with conditions and protocol."""
    lines = [f"# {study.task.title}, {study.data.name}, batch {study.task.batch_size}", ""]
    lines += [", ".join(f"{key}: {value}" for key, value in under.items()), ""]
    lines += [EXPLANATION.format(**settings(study), load=load), ""]
    lines += [*outcome_lines(study), "", f"![Training loss over steps and seconds]({name}.png)", ""]
    return "\n".join(lines)


def outcome_content(study: Study, outcome: Outcome) -> dict[str, Any]:
    """One contender for the JSON file, with every point of every run."""
    return {
        "contender": outcome.tuned.contender.name,
        "rate": outcome.tuned.best,
        "tried": [
            {"rate": rate, "loss": str(loss) if loss == float("inf") else loss}
            for rate, loss in outcome.tuned.losses.items()
        ],
        "failure": outcome.tuned.failure,
        "runs": [run_content(run, study.goals) for run in outcome.runs],
    }


def run_content(run: Run, goals: tuple[float, float]) -> dict[str, Any]:
    """One run for the JSON file."""
    reached = [crossing(run, goal) for goal in goals]
    return {
        "seed": run.seed,
        "failure": run.failure,
        "steps": run.steps,
        "seconds": run.seconds,
        "score": None if run.failure else run.score,
        "goals": [asdict(place) if place else None for place in reached],
        "points": [[point.steps, point.seconds, point.loss] for point in run.points],
    }


def circumstances() -> str:
    """Processor and versions, in a line."""
    known = {**conditions(0), **versions()}
    return ", ".join(f"{key}: {value}" for key, value in known.items() if key != "steps")


def save_plot(study: Study, path: Path) -> None:
    """Draw the training loss of every run over steps and over seconds."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for number, outcome in enumerate(study.outcomes):
        for run in outcome.runs:
            losses = [point.loss for point in run.points]
            for panel, unit in zip(panels, ("steps", "seconds"), strict=True):
                label = outcome.tuned.contender.name if run is outcome.runs[0] else None
                along = [getattr(point, unit) for point in run.points]
                panel.plot(along, losses, color=colormaps["tab20"](number), label=label, lw=1)
                panel.set_xlabel(unit)
    for panel in panels:
        for goal in study.goals:
            panel.axhline(goal, color="black", linewidth=0.8, linestyle=":")
        panel.grid(alpha=0.3)
    show_losses_along(panels[0])
    starts = [run.points[0].loss for outcome in study.outcomes for run in outcome.runs]
    panels[0].set_ylim(top=TALLEST * max(starts, default=1.0))
    panels[0].legend(fontsize="small")
    figure.suptitle(f"{study.task.title}, {study.data.name}")
    figure.savefig(path, dpi=100)


def content_of(study: Study, steps: int, load_before: float) -> dict[str, Any]:
    """A study for a JSON file: conditions, settings, and every contender's runs."""
    return {
        "conditions": {**conditions(steps), "device": "cpu", **versions()},
        "load": [load_before, load_average()],
        **settings(study),
        "contenders": [outcome_content(study, outcome) for outcome in study.outcomes],
    }


def save(study: Study, name: str, steps: int, load_before: float, folder: Path) -> list[Path]:
    """Write `name`.json, `name`.md and `name`.png."""
    folder.mkdir(parents=True, exist_ok=True)
    content = content_of(study, steps, load_before)
    paths = [folder / f"{name}.{suffix}" for suffix in ("json", "md", "png")]
    paths[0].write_text(json.dumps(content, indent=1) + "\n")
    load = "{} and {}".format(*content["load"])
    paths[1].write_text(markdown(study, name, content["conditions"], load))
    save_plot(study, paths[2])
    return paths
