"""How soon SNGD and what people use today reach the same training loss, and how well they test.

Every contender has the time of `--steps` steps of SGD, and the same number of learning rates to
choose from. `study_report.EXPLANATION` says the rest; a table, a JSON file, a page and a plot for
each task.

    make bench-peers ARGS="--tasks mlp --tasks gpt --seeds 3"
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from contenders import (
    ADAMW,
    BUILT_IN,
    FULL_BATCH,
    MUON_WITH_HEAD,
    REFERENCE,
    chosen,
    limit_to_one_thread,
)
from peers import PEERS
from study.protocol import Protocol, seconds_for, study
from study.race import Budget
from study.study_report import load_average, save, table
from tasks import TASKS, Task

RESULTS = Path(__file__).parents[1] / "results"
RATES = 4
ALL = (*BUILT_IN, MUON_WITH_HEAD, FULL_BATCH, *PEERS)
SECOND_CHOICE = ("K-FAC (curvlinops)", "SOAP (pytorch-optimizer)")
"""Other packages for a method that is there already: they run when `--only` names them."""

app = typer.Typer(add_completion=False)
console = Console(width=120)


def wanted(names: list[str] | None) -> list[Task]:
    """The tasks of these names; all without any."""
    known = {task.name: task for task in TASKS}
    for name in names or []:
        if name not in known:
            raise typer.BadParameter(f"no task is called {name!r}; there are {', '.join(known)}")
    return [known[name] for name in names or known]


@app.command()
def main(
    tasks: Annotated[list[str] | None, typer.Option(help="A task; may be repeated.")] = None,
    steps: Annotated[int | None, typer.Option(min=10, help="Of SGD; sets the time.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fresh ones, after tuning.")] = 3,
    rates: Annotated[int, typer.Option(min=1, max=RATES, help="Tried for each.")] = RATES,
    only: Annotated[list[str] | None, typer.Option(help="Part of a name; may be repeated.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Train each task with every contender in the same time."""
    limit_to_one_thread()
    among = [c for c in ALL if c.installed and (only or c.name not in SECOND_CHOICE)]
    contenders = chosen(only, among, always=ADAMW)
    for task in wanted(tasks):
        load = load_average()
        data = task.load()
        able = [contender for contender in contenders if task.can_have(contender, data)]
        length = steps or task.steps
        budget = Budget(seconds_for(length, REFERENCE, task, data), "seconds")
        protocol = Protocol(able, rates, seeds, budget, ADAMW)
        result = study(protocol, task, data, console.print)
        console.print(table(result))
        paths = save(result, f"convergence_{task.name}", length, load, output)
        console.print("Results: " + ", ".join(map(str, paths)))


if __name__ == "__main__":
    app()
