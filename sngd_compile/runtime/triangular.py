"""Products and solves with a lower triangular matrix that spare its zeros.

Legend: A lower triangular `[*, K, K]`, a constant in backward passes; x `[*, N, K]`, the same *.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

Batched = tuple[Tensor, int]
"""A tensor with a leading axis for the samples of a vmap, and that axis."""

BLOCK = 128
"""Columns of one block of a product; wide enough for a GEMM to run at full speed."""

FEW = 16
"""Rows for which one whole product takes no longer than its blocks do."""


_are_transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active


def multiply(lower: Tensor, x: Tensor) -> Tensor:
    """Return `x A`, differentiable in x."""
    if lower.shape[-1] == 1:
        return x * lower  # one weight per output: a number for every group
    return _product(_Multiply, x, lower) if _has_blocks(x, lower) else x @ lower


def multiply_transposed(lower: Tensor, x: Tensor) -> Tensor:
    """Return `x A^T`, differentiable in x."""
    if lower.shape[-1] == 1:
        return x * lower
    return _product(_MultiplyTransposed, x, lower) if _has_blocks(x, lower) else x @ lower.mT


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


def _has_blocks(x: Tensor, lower: Tensor) -> bool:
    """Whether a product is large enough to spare the zeros."""
    is_large = lower.dim() == 2 and lower.shape[-1] > BLOCK
    return is_large and not statically_known_true(x.shape[-2] <= FEW)


def _product(function: type[_Multiply | _MultiplyTransposed], x: Tensor, lower: Tensor) -> Tensor:
    """Apply the function; at once where nothing differentiates it, traces it or maps it.

    `apply` costs as much as several blocks. Asking for transforms is private, seen on torch 2.11 to
    2.13.
    """
    differentiated = x.requires_grad and torch.is_grad_enabled()
    if torch.compiler.is_compiling() or differentiated or _are_transforms_active():
        product: Tensor = function.apply(x, lower)  # type: ignore[no-untyped-call]
        return product
    return function.forward(x, lower)


class _Multiply(torch.autograd.Function):
    """`x A` by blocks of columns: those from `s` on need the rows from `s` on."""

    @staticmethod
    def forward(x: Tensor, lower: Tensor) -> Tensor:
        """Multiply the lower part of every block of columns."""
        starts = range(0, lower.shape[-1], BLOCK)
        return _side_by_side(x, [(x[:, s:], lower[s:, s : s + BLOCK]) for s in starts])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the matrix."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return `g A^T`."""
        (lower,) = ctx.saved_tensors
        return multiply_transposed(lower, gradients[0]), None

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], x: Tensor, lower: Tensor) -> Batched:
        """Multiply the rows of all samples at once."""
        return _of_samples(multiply, info.batch_size, dims, x, lower)


class _MultiplyTransposed(torch.autograd.Function):
    """`x A^T` by blocks of columns: those up to `e` need the columns up to `e`."""

    @staticmethod
    def forward(x: Tensor, lower: Tensor) -> Tensor:
        """Multiply the lower part of every block of rows."""
        ends = [(s, min(s + BLOCK, lower.shape[-1])) for s in range(0, lower.shape[-1], BLOCK)]
        return _side_by_side(x, [(x[:, :end], lower[start:end, :end].mT) for start, end in ends])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the matrix."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return `g A`."""
        (lower,) = ctx.saved_tensors
        return multiply(lower, gradients[0]), None

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], x: Tensor, lower: Tensor) -> Batched:
        """Multiply the rows of all samples at once."""
        return _of_samples(multiply_transposed, info.batch_size, dims, x, lower)


def _side_by_side(x: Tensor, factors: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the products, one after the other in columns, each written where it belongs."""
    if torch.compiler.is_compiling():  # Dynamo breaks at an `out` with strides
        return torch.cat([a @ b for a, b in factors], -1)
    product = torch.empty_like(x, memory_format=torch.contiguous_format)
    columns = product.split(BLOCK, -1)
    for (a, b), out in zip(factors, columns, strict=True):
        torch.mm(a, b, out=out)
    return product


def _of_samples(
    product: Callable[[Tensor, Tensor], Tensor],
    samples: int,
    dims: tuple[int | None, ...],
    x: Tensor,
    lower: Tensor,
) -> Batched:
    """Take a product whose rows, or whose matrices, or both come in one for each sample."""
    rows = x.expand(samples, *x.shape) if dims[0] is None else x.movedim(dims[0], 0)
    if dims[1] is None:
        return product(lower, rows.flatten(0, 1)).view(rows.shape), 0
    return product(lower.movedim(dims[1], 0), rows), 0
