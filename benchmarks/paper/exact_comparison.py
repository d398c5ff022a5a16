"""SGD and SNGD against natural gradient descent with the exact Fisher of all parameters.

A step of the exact method is far dearer, so all take the same number of steps, and the table has
the seconds beside them. The network is small enough for the exact Fisher: 64-20-10 on digits.

    make bench-exact ARGS="--steps 100"
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from torch import nn

from contenders import REFERENCE, SNGD, limit_to_one_thread
from data import Name, load
from paper.exact_natural import EXACT
from study.protocol import Protocol, study
from study.race import Budget
from study.study_report import load_average, save, table
from tasks import Data, Task, with_labels
from workloads import CLASSES

RESULTS = Path(__file__).parents[1] / "results"
RATES = 4

app = typer.Typer(add_completion=False)
console = Console(width=120)


def small_mlp() -> nn.Module:
    """64-20-10 with ReLU: 1510 parameters."""
    return nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, CLASSES))


def digits() -> Data:
    """Scikit-learn's digits."""
    return with_labels(load(Name.DIGITS))


TASK = Task("digits", "MLP 64-20-10", small_mlp, digits, 64, 200, nn.CrossEntropyLoss())


@app.command()
def main(
    steps: Annotated[int, typer.Option(min=10, help="Of each.")] = TASK.steps,
    seeds: Annotated[int, typer.Option(min=1, help="Fresh ones, after tuning.")] = 3,
    rates: Annotated[int, typer.Option(min=1, max=RATES, help="Tried for each.")] = RATES,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Train a small network with SGD, SNGD and exact natural gradient descent."""
    limit_to_one_thread()
    load_before = load_average()
    protocol = Protocol((REFERENCE, SNGD, EXACT), rates, seeds, Budget(steps, "steps"), REFERENCE)
    result = study(protocol, TASK, TASK.load(), console.print)
    console.print(table(result))
    paths = save(result, "exact", steps, load_before, output)
    console.print("Results: " + ", ".join(map(str, paths)))


if __name__ == "__main__":
    app()
