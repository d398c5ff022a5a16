"""Products and solves with a lower triangular matrix that spare its zeros.

Legend: A lower triangular `[*, K, K]`, a constant in backward passes; x `[*, N, K]`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 128
"""Columns of one block of a product; wide enough for a GEMM to run at full speed."""


def multiply(lower: Tensor, x: Tensor) -> Tensor:
    """Return `x A`, differentiable in x."""
    if lower.shape[-1] == 1:
        return x * lower  # one weight per output: a number for every group
    if lower.dim() > 2 or lower.shape[-1] <= BLOCK:
        return x @ lower
    product: Tensor = _Multiply.apply(x, lower)  # type: ignore[no-untyped-call]
    return product


def multiply_transposed(lower: Tensor, x: Tensor) -> Tensor:
    """Return `x A^T`, differentiable in x."""
    if lower.shape[-1] == 1:
        return x * lower
    if lower.dim() > 2 or lower.shape[-1] <= BLOCK:
        return x @ lower.mT
    product: Tensor = _MultiplyTransposed.apply(x, lower)  # type: ignore[no-untyped-call]
    return product


def solve(lower: Tensor, x: Tensor) -> Tensor:
    """Return `x A^-1`."""
    if lower.shape[-1] == 1:
        return x / lower
    solved: Tensor = torch.linalg.solve_triangular(lower, x, upper=False, left=False)
    return solved


def solve_transposed(lower: Tensor, x: Tensor) -> Tensor:
    """Return `x A^-T`."""
    if lower.shape[-1] == 1:
        return x / lower
    solved: Tensor = torch.linalg.solve_triangular(lower.mT, x, upper=True, left=False)
    return solved


class _Multiply(torch.autograd.Function):
    """`x A` by blocks of columns: those from `s` on need the rows from `s` on."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, lower: Tensor) -> Tensor:
        """Multiply the lower part of every block of columns."""
        starts = range(0, lower.shape[-1], BLOCK)
        return torch.cat([x[..., s:] @ lower[s:, s : s + BLOCK] for s in starts], -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the matrix."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return `g A^T`."""
        (lower,) = ctx.saved_tensors
        return multiply_transposed(lower, gradients[0]), None


class _MultiplyTransposed(torch.autograd.Function):
    """`x A^T` by blocks of columns: those up to `e` need the columns up to `e`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, lower: Tensor) -> Tensor:
        """Multiply the lower part of every block of rows."""
        ends = [min(s + BLOCK, lower.shape[-1]) for s in range(0, lower.shape[-1], BLOCK)]
        parts = [x[..., :end] @ lower[end - 1 - (end - 1) % BLOCK : end, :end].mT for end in ends]
        return torch.cat(parts, -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the matrix."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return `g A`."""
        (lower,) = ctx.saved_tensors
        return multiply(lower, gradients[0]), None
