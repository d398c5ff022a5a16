"""Three ways to apply a triangular root to rows: a dense product, a solve, a product by blocks."""

import time
from collections.abc import Callable

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from contenders import limit_to_one_thread
from sngd_compile.fisher.roots.triangular import multiply, multiply_transposed

SHAPES = ((256, 784), (256, 512), (64, 2048), (1024, 256))
RUNS = 80


def milliseconds(call: Callable[[], Tensor]) -> float:
    """Return the time that the fastest quarter of the runs stays within."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return float(np.percentile(seconds, 25)) * 1e3


def row(rows: int, width: int) -> list[str]:
    """Time one shape; columns in pairs, for the factor and for its transpose."""
    x = torch.randn(rows, width)
    lower = torch.linalg.cholesky(torch.cov(torch.randn(width, 4 * width)) + torch.eye(width))
    inverse = torch.linalg.inv(lower).contiguous()
    solve = torch.linalg.solve_triangular
    calls = (
        lambda: x @ inverse,
        lambda: solve(lower.mT, x.mT, upper=True).mT,
        lambda: solve(lower, x.mT, upper=False).mT,
        lambda: multiply(inverse, x),
        lambda: multiply_transposed(inverse, x),
    )
    return [f"{rows}, {width}", *(f"{milliseconds(call):.2f}" for call in calls)]


def main() -> None:
    """Print milliseconds on one thread."""
    limit_to_one_thread()
    table = Table("N, K", "dense", "solve", "solve, transposed", "blocks", "blocks, transposed")
    for shape in SHAPES:
        table.add_row(*row(*shape))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
