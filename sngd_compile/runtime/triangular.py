"""Solves and products with a lower triangular matrix that never touch its zeros.

Legend: C lower triangular `[*, K, K]`, x `[*, N, K]`, results in the memory order of x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 128
"""Columns of one block of a product; wide enough for a GEMM to run at full speed."""


def solve(lower: Tensor, x: Tensor) -> Tensor:
    """Return `x C^-1`; written column-major, which is what the solver works in."""
    if lower.shape[-1] == 1:
        return x / lower  # one weight per output: a number for every group
    solved: Tensor = torch.linalg.solve_triangular(lower.mT, x.mT, upper=True)
    return solved.mT


def solve_transposed(lower: Tensor, x: Tensor) -> Tensor:
    """Return `x C^-T`."""
    if lower.shape[-1] == 1:
        return x / lower
    solved: Tensor = torch.linalg.solve_triangular(lower, x.mT, upper=False)
    return solved.mT


def multiply(lower: Tensor, x: Tensor) -> Tensor:
    """Return `x C`, by blocks of columns: columns `s` to `e` need the rows from `s` on."""
    width = lower.shape[-1]
    if width == 1:
        return x * lower
    if lower.dim() > 2 or width <= BLOCK:
        return x @ lower
    product = x.new_empty(x.shape)
    for start in range(0, width, BLOCK):
        end = min(start + BLOCK, width)
        torch.mm(x[:, start:], lower[start:, start:end], out=product[:, start:end])
    return product


def multiply_transposed(lower: Tensor, x: Tensor) -> Tensor:
    """Return `x C^T`, by blocks of columns: columns `s` to `e` need the columns up to `e`."""
    width = lower.shape[-1]
    if width == 1:
        return x * lower
    if lower.dim() > 2 or width <= BLOCK:
        return x @ lower.mT
    product = x.new_empty(x.shape)
    for start in range(0, width, BLOCK):
        end = min(start + BLOCK, width)
        torch.mm(x[:, :end], lower[start:end, :end].mT, out=product[:, start:end])
    return product


def whiten(rows: Tensor, lower: Tensor, shift: Tensor | None) -> Tensor:
    """Return `C^-1 x - shift` for rows `[N, K]`: one solve each way and no further memory."""
    whitened: Tensor = _Whiten.apply(rows, lower, shift)  # type: ignore[no-untyped-call]
    return whitened


class _Whiten(torch.autograd.Function):
    """The function of `whiten`; the factor is a constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, lower: Tensor, shift: Tensor | None) -> Tensor:
        """Solve, then centre in place."""
        whitened = solve_transposed(lower, rows)
        return whitened if shift is None else whitened.sub_(shift)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the factor; the rows are not needed."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return `g C^-1`; the factor is a constant."""
        (lower,) = ctx.saved_tensors
        return solve(lower, gradients[0]), None, None
