"""One learning rate for every task, beside the best of those that were tried on each.

SNGD has its defaults. Steps cost the same at every rate, so steps are counted. The goals are the
training losses that the tuned rate reaches on every seed, one within half the steps of the task,
one within all; all runs are half as long again, so that a rate may take longer.

    make bench-one-rate ARGS="--tasks mlp --tasks gpt"
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from contenders import SNGD, Contender, limit_to_one_thread
from steps.step_report import table_lines
from study.convergence import RATES, RESULTS, wanted
from study.protocol import Protocol, Study, crossing, goal_of, spread, study
from study.race import Budget
from study.study_report import circumstances, content_of, load_average

HEADER = (
    "task",
    "rate for all",
    "best rate",
    "loss, near",
    "steps over the best rate's",
    "loss, far",
    "steps over the best rate's",
)
EXPLANATION = """\
# One learning rate for every task

`make bench-one-rate`: SNGD at one rate on every task, and at the best of {rates} rates, tried on
seed 0 over three quarters of the task's steps; with the defaults and
Nesterov's momentum of 0.9. Both ran on {seeds} fresh seeds, on the same batches, for 1.5 times the
task's steps. The losses are what the best rate reaches on every seed, one within half the task's
steps, one within all of them; with each the steps that the one rate takes to it over those of the
best one, seed by seed: the median, in brackets the least and the largest. A star marks a best rate
at the edge of those tried.

"""
LONGER = 1.5
"""All runs take as many times the task's steps."""

console = Console(width=120)


def at_one_rate(contender: Contender) -> Contender:
    """The same, with nothing to choose from."""
    return replace(contender, name=f"{contender.name}, one rate", rates=contender.rates[:1])


RATES_NEARBY = (0.03, 0.05, 0.018, 0.1)
"""The rate that the documentation recommends, and those around it."""

TUNED = replace(SNGD, rates=RATES_NEARBY)
PAIR = (TUNED, at_one_rate(TUNED))
"""The first of several rates is the one for every task."""


def goals_within(result: Study, steps: int) -> tuple[float, float]:
    """The losses that the tuned rate reaches on every seed within half the steps and within all."""
    tuned = result.outcomes[0].runs
    return goal_of(tuned, "steps", steps / 2), goal_of(tuned, "steps", steps)


def ratios(result: Study, goal: float) -> list[float | None]:
    """The steps of the one rate over those of the best, for each seed; None where not reached."""
    tuned, fixed = ([crossing(run, goal) for run in one.runs] for one in result.outcomes)
    return [
        other.steps / best.steps if best and other else None
        for best, other in zip(tuned, fixed, strict=True)
    ]


def row(result: Study) -> list[str]:
    """One task."""
    tuned, fixed = (outcome.tuned for outcome in result.outcomes)
    best = f"{tuned.best:g}{'*' if tuned.at_edge else ''}"
    cells = [result.task.name, f"{fixed.best:g}", best]
    for goal in result.goals:
        cells += [f"{goal:.3g}", spread(ratios(result, goal), ".2f")]
    return cells


def page(rows: Sequence[Sequence[str]], seeds: int, rates: int) -> str:
    """All of them."""
    table = "\n".join(table_lines(HEADER, rows))
    explained = EXPLANATION.format(rates=rates, seeds=seeds)
    return explained + circumstances() + "\n\n" + table + "\n"


def main(
    tasks: Annotated[list[str] | None, typer.Option(help="A task; may be repeated.")] = None,
    steps: Annotated[int | None, typer.Option(min=10, help="Of each.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fresh ones, after tuning.")] = 3,
    rates: Annotated[int, typer.Option(min=1, max=RATES, help="Tried.")] = RATES,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Train each task at one rate and at its best."""
    limit_to_one_thread()
    output.mkdir(parents=True, exist_ok=True)
    rows, contents = [], []
    for task in wanted(tasks):
        length = steps or task.steps
        load = load_average()
        budget = Budget(LONGER * length, "steps")
        protocol = Protocol(PAIR, rates, seeds, budget, PAIR[0])
        result = study(protocol, task, task.load(), console.print)
        result = replace(result, goals=goals_within(result, length))
        rows.append(row(result))
        contents.append(content_of(result, length, load))
        console.print(*rows[-1], sep="  ")
    (output / "one_rate.json").write_text(json.dumps(contents, indent=1) + "\n")
    (output / "one_rate.md").write_text(page(rows, seeds, rates))
    console.print(f"Results: {output / 'one_rate.md'}")


if __name__ == "__main__":
    typer.run(main)
