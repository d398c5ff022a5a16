"""What each setting of `Config` changes: the demo's network trained with one of them at a time.

Every setting starts from the same weights and sees the same batches as the defaults, at the demo's
learning rate, momentum and clipping. The steps of all take turns, on one thread.

    python examples/settings.py
"""

import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import sngd_compile as sngd
from data import Dataset, Name, load
from training import Method, Run, batches, natural, start

BATCH_SIZE = 256
SETTINGS: dict[str, sngd.Config] = {
    "defaults": sngd.Config(),
    "damping_rel_trace=1e-2": sngd.Config(damping_rel_trace=1e-2),
    "damping_rel_trace=1e-3": sngd.Config(damping_rel_trace=1e-3),
    "trust_rate=0": sngd.Config(trust_rate=0.0),
    "trust_rate=0.1": sngd.Config(trust_rate=0.1),
    "trust_share=None": sngd.Config(trust_share=None),
    "trust_share=None, trust_radius=None": sngd.Config(trust_share=None, trust_radius=None),
    "refresh_every=20": sngd.Config(refresh_every=20),
    "refresh_every=500": sngd.Config(refresh_every=500),
    "early_refreshes=()": sngd.Config(early_refreshes=()),
    "observe_every=10": sngd.Config(observe_every=10),
    "observe_every=1": sngd.Config(observe_every=1),
    "step_budget=0.25": sngd.Config(step_budget=0.25),
    "step_budget=0.05": sngd.Config(step_budget=0.05),
    "max_rows=64": sngd.Config(max_rows=64),
    "ema_decay=0.995": sngd.Config(ema_decay=0.995),
    'fisher="diagonal"': sngd.Config(fisher="diagonal"),
    'fisher="block"': sngd.Config(fisher="block"),
    'fisher="unit", memory_budget=2**26': sngd.Config(fisher="unit", memory_budget=2**26),
    'fisher="kronecker"': sngd.Config(fisher="kronecker"),
    'root="symmetric"': sngd.Config(root="symmetric"),
    "Config.paper()": sngd.Config.paper(),
    'Config.paper(), fisher="unit", memory_budget=2**26': sngd.Config.paper().replace(
        fisher="unit", memory_budget=2**26
    ),
}


def methods(rate: float) -> list[Method]:
    """One method for each setting."""
    return [
        Method(name, (rate,), partial(natural, config=config), sngd.fold)
        for name, config in SETTINGS.items()
    ]


def trained(data: Dataset, rate: float, epochs: int, seed: int) -> Iterator[Run]:
    """Train every setting side by side and measure it at the end."""
    runs = [start(method, rate, data, seed) for method in methods(rate)]
    order = list(batches(data, BATCH_SIZE, epochs, seed))
    for inputs, labels in track(order, f"seed {seed}"):
        for run in runs:
            run.step(inputs, labels)
    for run in runs:
        run.measure(data)
        yield run


def spread(values: list[float], form: str) -> str:
    """The median, and in brackets the least and the largest."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({least:{form}} to {most:{form}})"


def main(
    data: Annotated[Name, typer.Option(help="What to train on.")] = Name.FASHION_MNIST,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the idx files.")] = None,
    rate: Annotated[float, typer.Option(help="Learning rate of all.")] = 0.03,
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
) -> None:
    """Train the demo's network with one setting changed at a time, and print a table."""
    torch.set_num_threads(1)
    dataset = load(data, data_dir)
    runs = [run for seed in range(seeds) for run in trained(dataset, rate, epochs, seed)]
    title = f"{data}, {epochs} epochs of batch {BATCH_SIZE}, lr {rate:g}, {seeds} seeds"
    table = Table("setting", "training loss", "test accuracy", "step over defaults'", title=title)
    plain = [run.seconds_per_step for run in runs if run.method.name == "defaults"]
    for name in SETTINGS:
        same = [run for run in runs if run.method.name == name]
        losses = spread([run.points[-1].training_loss for run in same], ".3f")
        accuracies = spread([run.points[-1].test_accuracy for run in same], ".1%")
        # Of one seed, whose steps took turns; between seeds the machine's mood may change.
        ratios = [run.seconds_per_step / least for run, least in zip(same, plain, strict=True)]
        table.add_row(name, losses, accuracies, spread(ratios, ".2f"))
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
