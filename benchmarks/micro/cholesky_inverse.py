"""Time of `cholesky_inverse` against what else gives a root: eigh, and LAPACK's own two calls.

Every method takes one turn in each round, on one thread and the same matrix. Nothing is printed
unless every root `R` first satisfies `R G R^T = I`.

    make bench-kernels
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from micro.conv_second_moment import RedGateError, processor
from sngd_kernels import cholesky_inverse

SIZES = (256, 512, 1024, 2048)
ROUNDS = {256: 15, 512: 11, 1024: 7, 2048: 3}
# Calls in one turn: a turn shorter than what the system lets run at a time measures the system.
CALLS = {256: 20, 512: 4, 1024: 1, 2048: 1}
# Largest entry of R G R^T - I in float32, at a condition number near 30.
TOLERANCE = 1e-3


def eigh(matrix: Tensor) -> Tensor:
    """The symmetric root, from all eigenpairs."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.rsqrt()) @ vectors.mT
    return root


def two_calls(matrix: Tensor) -> Tensor:
    """Factorise and solve, without a look at symmetry, entries or pivots."""
    lower = torch.linalg.cholesky_ex(matrix)[0]
    inverse: Tensor = torch.linalg.solve_triangular(
        lower, torch.eye(len(matrix), dtype=matrix.dtype), upper=False
    )
    return inverse


METHODS: tuple[Callable[[Tensor], Tensor], ...] = (cholesky_inverse, two_calls, eigh)


def factor(size: int) -> Tensor:
    """The second moment of random rows, float32."""
    rows = torch.randn(2 * size, size)
    return rows.T @ rows / len(rows)


def check(matrix: Tensor) -> None:
    """Refuse to go on if a method's root is none."""
    for method in METHODS:
        root = method(matrix).double()
        error = (root @ matrix.double() @ root.mT - torch.eye(len(matrix)).double()).abs().max()
        if not error.item() <= TOLERANCE:
            raise RedGateError(f"{method.__name__} is off by {error:.1e} at D = {len(matrix)}")


def main() -> None:
    """Check, then measure and print one line for each size."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {processor()}, one thread, float32")
    print("milliseconds: median (20 % - 80 %) of interleaved rounds; eigh / cholesky_inverse")
    print("   D" + "".join(f"{method.__name__:>28}" for method in METHODS) + "   ratio")
    for size in SIZES:
        matrix = factor(size)
        check(matrix)
        times: dict[str, list[float]] = {method.__name__: [] for method in METHODS}
        for _ in range(ROUNDS[size]):
            for method in METHODS:
                start = time.perf_counter()
                for _ in range(CALLS[size]):
                    method(matrix)
                seconds = (time.perf_counter() - start) / CALLS[size]
                times[method.__name__].append(1e3 * seconds)
        cells = []
        for milliseconds in times.values():
            low, _, _, high = statistics.quantiles(milliseconds, n=5)
            middle = statistics.median(milliseconds)
            cells.append(f"{middle:10.2f} ({low:.2f}-{high:.2f})".rjust(28))
        ratio = statistics.median(times["eigh"]) / statistics.median(times["cholesky_inverse"])
        print(f"{size:4}{''.join(cells)}{ratio:8.1f}", flush=True)


if __name__ == "__main__":
    main()
