"""Rounding errors of the local Fisher layer: of the root, of a fold, of many refreshes.

python benchmarks/micro/numerics.py
"""

import platform
from collections.abc import Iterator
from itertools import product
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile.registry import ROOTS

INPUTS, OUTPUTS, ROWS = 256, 64, 2048
DAMPINGS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10)
DTYPES = (torch.float64, torch.float32, torch.bfloat16)

console = Console(width=220)


def rows(dtype: torch.dtype, seed: int = 0, decades: float = 2.0) -> Tensor:
    """Correlated rows off centre, whose standard deviations span `decades`."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.linalg.qr(torch.randn(INPUTS, INPUTS, generator=torch.Generator())).Q.double()
    deviations = torch.logspace(0, -decades, INPUTS, dtype=torch.float64)
    noise = torch.randn(ROWS, INPUTS, generator=generator, dtype=torch.float64)
    correlated: Tensor = (noise * deviations) @ mixing
    return (correlated + 0.3).to(dtype)


def observed(dtype: torch.dtype, config: sngd.Config, x: Tensor) -> nn.Module:
    """A reconstructed linear layer whose root comes from `x`."""
    torch.manual_seed(0)
    net = sngd.reconstruct(nn.Linear(INPUTS, OUTPUTS, dtype=dtype), config)
    net(x)
    return sngd.refresh_(net)


def relative(difference: Tensor, reference: Tensor) -> str:
    """The largest difference over the largest entry of the reference."""
    return f"{float(difference.abs().max() / reference.abs().max()):.1e}"


def of_the_root() -> Iterator[tuple[str, ...]]:
    """The largest entry of `R (G + damping) R^T - I`, in float64, for every kind of root."""
    for dtype, damping in product(DTYPES[:2], DAMPINGS):
        cells, condition = [], ""
        for kind in ROOTS:
            config = sngd.Config(damping_rel_trace=damping, root=kind, max_rows=None, rank=None)
            net = observed(dtype, config, rows(dtype, decades=4.0))
            fisher = sngd.fisher_layers(net)["weight"]
            eye = torch.eye(fisher.size, dtype=torch.float64)
            damped = fisher.factor.double() + fisher.damping * eye
            root = fisher.root.double()
            condition = f"{torch.linalg.cond(damped):.0e}"
            cells.append(relative(root @ damped @ root.T - eye, eye))
        yield str(dtype)[6:], f"{damping:.0e}", condition, *cells


def of_the_fold() -> Iterator[tuple[str, ...]]:
    """The network against its fold, applied to few rows (activation side) and to many."""
    for dtype in DTYPES:
        net = observed(dtype, sngd.Config(), rows(dtype))
        cells = []
        for count in (16, ROWS):
            x = rows(dtype, seed=1)[:count]
            with torch.no_grad():
                plain = sngd.fold(net)(x).double()
                cells.append(relative(net(x).double() - plain, plain))
        yield str(dtype)[6:], *cells


def of_refreshes(count: int) -> Iterator[tuple[str, ...]]:
    """How far the outputs move in refreshes from changing batches, without a step between."""
    for dtype in DTYPES:
        x = rows(dtype)
        net = observed(dtype, sngd.Config(), x)
        before = sngd.fold(net)(x).detach().double()
        cells = []
        for done in range(1, count + 1):
            net(rows(dtype, seed=done)[:256])
            sngd.refresh_(net)
            if done in (1, 10, 100, 1000):
                after = sngd.fold(net)(x).detach().double()
                cells.append(relative(after - before, before))
        yield str(dtype)[6:], *cells


def show(title: str, header: tuple[str, ...], lines: Iterator[tuple[str, ...]]) -> None:
    """Print one table."""
    table = Table(*header, title=title, title_justify="left")
    for line in lines:
        table.add_row(*line)
    console.print(table)


def main(refreshes: Annotated[int, typer.Option(min=1)] = 1000) -> None:
    """Print errors as three tables."""
    torch.set_num_threads(1)
    console.print(f"Linear {INPUTS}-{OUTPUTS} with bias, torch {torch.__version__}, ", end="")
    console.print(f"python {platform.python_version()}, {platform.machine()}, one thread")
    show(
        "R (G + damping) R^T - I, largest entry",
        ("dtype", "damping_rel_trace", "condition", *ROOTS),
        of_the_root(),
    )
    columns = ("dtype", "16 rows", f"{ROWS} rows")
    show("network against its fold, over the largest output", columns, of_the_fold())
    drift = ("dtype", *(f"{n} refreshes" for n in (1, 10, 100, 1000) if n <= refreshes))
    show("outputs moved by refreshes, over the largest", drift, of_refreshes(refreshes))


if __name__ == "__main__":
    typer.run(main)
