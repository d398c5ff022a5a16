"""Muon on the reconstructed network beside Muon on the plain one, under the rules of the study.

Both step the hidden matrices with Muon and the rest with AdamW. The goals are what plain Muon
reaches on every seed, one within half of its time, one within all of it.

    make bench-muon ARGS="--tasks gpt --tasks autoencoder"
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from contenders import MUON, NATURAL_MUON, REFERENCE, has_hidden_matrices, limit_to_one_thread
from study.convergence import RATES, RESULTS
from study.protocol import Protocol, seconds_for, study
from study.race import Budget
from study.study_report import circumstances, content_of, load_average, outcome_lines, table
from tasks import TASKS

BY_NAME = {task.name: task for task in TASKS if has_hidden_matrices(task.model(0))}
EXPLANATION = """\
# Muon on the reconstructed network

`make bench-muon`: `torch.optim.Muon` on the hidden matrices of the plain network, and of the one
that `sngd.reconstruct(model, sngd.Config.muon())` gives; AdamW for the rest of both. Each tried
{rates} learning rates on seed 0 over half the time that the task's steps of SGD take, and then ran
on {seeds} fresh seeds. The goals are the training losses that plain Muon reaches on every seed, one
within half the time, one within all of it. Seconds are processor time of one thread. Medians; in
brackets the least and the largest.

"""

console = Console(width=120)


def main(
    tasks: Annotated[list[str] | None, typer.Option(help="A task; may be repeated.")] = None,
    steps: Annotated[int | None, typer.Option(min=10, help="Of SGD; sets the time.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fresh ones, after tuning.")] = 3,
    rates: Annotated[int, typer.Option(min=1, max=RATES, help="Tried for each.")] = RATES,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Train the tasks that have hidden matrices with both."""
    limit_to_one_thread()
    output.mkdir(parents=True, exist_ok=True)
    contents, sections = [], []
    for name in tasks or BY_NAME:
        if name not in BY_NAME:
            known = ", ".join(BY_NAME)
            raise typer.BadParameter(f"no task with hidden matrices is called {name!r}: {known}")
        task, load = BY_NAME[name], load_average()
        data, length = task.load(), steps or task.steps
        budget = Budget(seconds_for(length, REFERENCE, task, data), "seconds")
        result = study(
            Protocol((MUON, NATURAL_MUON), rates, seeds, budget, MUON), task, data, console.print
        )
        console.print(table(result))
        contents.append(content_of(result, length, load))
        title = f"## {task.title}, {data.name}"
        sections.append("\n".join([title, "", *outcome_lines(result)]))
    (output / "muon.json").write_text(json.dumps(contents, indent=1) + "\n")
    explained = EXPLANATION.format(rates=rates, seeds=seeds)
    page = "\n\n".join([explained.rstrip(), circumstances(), *sections])
    (output / "muon.md").write_text(page.rstrip() + "\n")
    console.print(f"Results: {output / 'muon.md'}")


if __name__ == "__main__":
    typer.run(main)
