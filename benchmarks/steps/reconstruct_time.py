"""How `reconstruct` and the hooks around an optimizer's step grow with the number of layers."""

import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import SGD

import sngd_compile as sngd
from contenders import limit_to_one_thread

FEW, MANY = 100, 1000
BAR = 12.0
WIDTH = 8

console = Console()


def chain(layers: int) -> nn.Module:
    """Linear layers so small that only the bookkeeping around them takes time."""
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))


def fastest(task: Callable[[], object], repeats: int) -> float:
    """The least of several times, in seconds; on a busy machine the mean says little."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return min(times)


def reconstruction_seconds(layers: int, repeats: int) -> float:
    """The time that `reconstruct` takes for a chain."""
    model = chain(layers)
    return fastest(lambda: sngd.reconstruct(model), repeats)


def hook_seconds(layers: int, repeats: int) -> tuple[float, float]:
    """The times of an optimizer's step on a chain, plain and reconstructed.

    The least of many steps is one in which nothing is due: the difference is guard and counting.
    """
    plain = chain(layers)
    optimizers = []
    for network in (plain, sngd.reconstruct(plain)):
        optimizers.append(SGD(network.parameters(), lr=1e-6, momentum=0.9))
        network(torch.randn(4, WIDTH)).square().mean().backward()
        for _ in range(sngd.Config().early_refreshes[-1]):
            optimizers[-1].step()
    usual, hooked = (fastest(optimizer.step, repeats) for optimizer in optimizers)
    return usual, hooked


def growth_table(few: int, many: int, repeats: int) -> Table:
    """Both times for few and for many layers, and how they grow."""
    table = Table("", f"{few} layers", f"{many} layers", "growth", "bar")
    short, long = (reconstruction_seconds(layers, repeats) for layers in (few, many))
    growth = long / short
    verdict = f"{'pass' if growth <= BAR else 'miss'} (<= {BAR:g})" if many == 10 * few else ""
    table.add_row(
        "reconstruct, ms", f"{1e3 * short:.0f}", f"{1e3 * long:.0f}", f"{growth:.1f}", verdict
    )
    table.add_row("a layer, ms", f"{1e3 * short / few:.2f}", f"{1e3 * long / many:.2f}", "", "")
    steps = [hook_seconds(layers, 10 * repeats) for layers in (few, many)]
    names = ("optimizer.step, plain, ms", "optimizer.step, reconstructed, ms")
    for name, (first, second) in zip(names, zip(*steps, strict=True), strict=True):
        numbers = (f"{1e3 * first:.2f}", f"{1e3 * second:.2f}", f"{second / first:.1f}")
        table.add_row(name, *numbers, "")
    hooks = [
        1e6 * (hooked - usual) / layers
        for (usual, hooked), layers in zip(steps, (few, many), strict=True)
    ]
    table.add_row("hooks a layer, µs", *(f"{microseconds:.1f}" for microseconds in hooks), "", "")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def main(
    few: Annotated[int, typer.Option(min=1, help="Layers of the short chain.")] = FEW,
    many: Annotated[int, typer.Option(min=1, help="Layers of the long chain.")] = MANY,
    repeats: Annotated[int, typer.Option(min=1, help="Times each is taken.")] = 5,
) -> None:
    """Time `reconstruct` and the hooks for few layers and for many."""
    limit_to_one_thread()
    console.print(growth_table(few, many, repeats))


if __name__ == "__main__":
    typer.run(main)
