"""Trains one network with SGD, AdamW and natural gradient descent (SNGD), and compares them.

All three start from the same weights and see the same batches, side by side: a step of each in
turn, so that whatever else the machine does slows all of them alike. A method's seconds are its
steps times its mean time of a step. Each method runs at its own best of four learning rates, which
a shorter run chooses by its training loss.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import sngd_compile as sngd
from data import DEBIAN_FASHION_MNIST, DataError, Dataset, Name, load
from report import common_goal, save_json, save_plot, summarise, table
from training import METHODS, Run, batches, start

BATCH_SIZE = 256
MEASUREMENTS_PER_EPOCH = 10
EPOCHS = {Name.FASHION_MNIST: 10, Name.MNIST: 10, Name.DIGITS: 60}

app = typer.Typer(add_completion=False)
console = Console()


def load_or_fall_back(name: Name, folder: Path | None) -> Dataset:
    """Loads the data; digits stand in for Fashion-MNIST where that is not on the machine."""
    if name is Name.FASHION_MNIST and folder is None and not DEBIAN_FASHION_MNIST.exists():
        console.print(
            f"Fashion-MNIST is not in {DEBIAN_FASHION_MNIST}; training on scikit-learn's digits.\n"
            "To have it: apt-get install dataset-fashion-mnist, or --data-dir with its idx files."
        )
        name = Name.DIGITS
    return load(name, folder)


def train(runs: list[Run], data: Dataset, epochs: int, seed: int, label: str) -> None:
    """Trains all runs side by side, under one progress bar, and measures them now and then."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[losses]}"))
    per_epoch = len(data.train_labels) // BATCH_SIZE
    every = max(1, per_epoch // MEASUREMENTS_PER_EPOCH)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(label, total=epochs * per_epoch, losses="")
        for step, (inputs, labels) in enumerate(batches(data, BATCH_SIZE, epochs, seed)):
            if step % every == 0:
                for run in runs:
                    run.measure(data)
                bar.update(task, losses=lowest_losses(runs))
            for run in runs:
                run.step(inputs, labels)
            bar.advance(task)
        for run in runs:
            run.measure(data)
        bar.update(task, losses=lowest_losses(runs))


def lowest_losses(runs: list[Run]) -> str:
    """The lowest training loss of each method, for the progress bar."""
    lowest = {
        method.name: min(run.loss for run in runs if run.method is method) for method in METHODS
    }
    return "  ".join(f"{name} {loss:.2g}" for name, loss in lowest.items())


def choose_rates(data: Dataset, epochs: int, seed: int) -> list[Run]:
    """One new run for each method, at the rate with the lowest training loss after `epochs`."""
    tried = [start(method, rate, data, seed) for method in METHODS for rate in method.rates]
    train(tried, data, epochs, seed, f"{len(tried)} learning rates")
    chosen = []
    for method in METHODS:
        of_method = [run for run in tried if run.method is method]
        best = min(of_method, key=lambda run: run.loss)
        chosen.append(start(method, best.rate, data, seed))
    return chosen


@app.command()
def main(
    data: Annotated[Name, typer.Option(help="What to train on.")] = Name.FASHION_MNIST,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the four idx files.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and the batches.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="10; for digits 60.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for plot and results.")] = Path("build/demo"),
) -> None:
    """Train one network with SGD, AdamW and SNGD, side by side."""
    # Networks this small gain little from a second thread, and times vary less without it.
    torch.set_num_threads(1)
    try:
        dataset = load_or_fall_back(data, data_dir)
    except DataError as error:
        raise typer.BadParameter(str(error)) from error
    epochs = epochs or EPOCHS[dataset.name]
    runs = choose_rates(dataset, max(1, epochs // 5), seed)
    train(runs, dataset, epochs, seed, "the best of each")

    goal = common_goal(runs)
    results = [summarise(run, goal) for run in runs]
    title = f"{dataset.name}, {epochs} epochs of batch {BATCH_SIZE}, one thread"
    console.print(table(results, goal, title))
    output.mkdir(parents=True, exist_ok=True)
    save_plot(runs, goal, title, output / "compare.png")
    settings = {"data": dataset.name, "epochs": epochs, "batch_size": BATCH_SIZE, "seed": seed}
    save_json(results, {**settings, "goal": goal}, output / "compare.json")
    console.print(f"Plot and results: {output / 'compare.png'}, {output / 'compare.json'}")
    natural = next(run for run in runs if run.history)
    page = sngd.explain(natural.network).to_html(output / "report.html", natural.history)
    console.print(f"What was reconstructed, and how it trained: {page}")


if __name__ == "__main__":
    app()
