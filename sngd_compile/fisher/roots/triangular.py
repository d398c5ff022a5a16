"""Products and solves with a lower triangular matrix that spare its zeros.

Legend: A lower triangular `[*, K, K]`, a constant in backward passes; x `[*, N, K]`, the same *.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from sngd_compile.fisher.transforms import (
    are_transforms_active,
    carrying_tangents,
    is_forward_mode,
    takes_opaque_ops,
)

Batched = tuple[Tensor, int]
"""A tensor with a leading axis for the samples of a vmap, and that axis."""

BLOCK = 128
"""Columns of one block of a product; wide enough for a GEMM to run at full speed."""

DEVICE_BLOCK = 1024
"""The same where every call is a launch: smaller blocks take longer than one whole product."""

FEW = 16
"""Rows for which one whole product takes no longer than its blocks do."""


def multiply(lower: Tensor, x: Tensor) -> Tensor:
    """Return `x A`, differentiable in x."""
    if lower.shape[-1] == 1:
        return x * lower  # one weight per output: a number for every group
    return _product(x, lower, False) if _has_blocks(x, lower) else x @ lower


def multiply_transposed(lower: Tensor, x: Tensor) -> Tensor:
    """Return `x A^T`, differentiable in x."""
    if lower.shape[-1] == 1:
        return x * lower
    return _product(x, lower, True) if _has_blocks(x, lower) else x @ lower.mT


def solve(lower: Tensor, x: Tensor) -> Tensor:
    """Return `x A^-1`."""
    if lower.shape[-1] == 1:
        return x / lower
    solved: Tensor = torch.linalg.solve_triangular(lower, x, upper=False, left=False)
    return solved


def solve_between(lower: Tensor, other: Tensor) -> Tensor:
    """Return `B A^-1` for two lower triangular matrices, lower triangular like them.

    By halves, `[[A, 0], [C, D]]` and `[[E, 0], [F, H]]` give `[[E A^-1, 0], [(F - X C) A^-1, X]]`
    with `X = H D^-1`: `K^3 / 4` multiply-adds, where `solve` takes `K^3 / 2`.
    """
    size = lower.shape[-1]
    # Below one block the calls cost more than the zeros that they spare.
    if size <= block_width(lower):
        return solve(lower, other)
    half = size // 2
    between = torch.zeros_like(other)
    first, second = lower[..., :half, :half], lower[..., half:, half:]
    between[..., :half, :half] = solve_between(first, other[..., :half, :half])
    last = solve_between(second, other[..., half:, half:])
    between[..., half:, half:] = last
    # The corner alone mixes the halves; it needs X, so it comes last.
    rest = other[..., half:, :half] - last @ lower[..., half:, :half]
    between[..., half:, :half] = solve(first, rest)
    return between


def solve_transposed(lower: Tensor, x: Tensor) -> Tensor:
    """Return `x A^-T`."""
    if lower.shape[-1] == 1:
        return x / lower
    solved: Tensor = torch.linalg.solve_triangular(lower.mT, x, upper=True, left=False)
    return solved


def block_width(lower: Tensor) -> int:
    """Return how many columns are multiplied at once where the matrix lies."""
    return BLOCK if lower.device.type == "cpu" else DEVICE_BLOCK


def _has_blocks(x: Tensor, lower: Tensor) -> bool:
    """Whether a product is large enough to spare the zeros, and no graph must show it."""
    # Groups are one batched product. Forward mode takes plain products, and no `out=`.
    is_large = lower.dim() == 2 and lower.shape[-1] > block_width(lower)
    if not is_large or is_forward_mode() or statically_known_true(x.shape[-2] <= FEW):
        return False
    return takes_opaque_ops() or not torch.compiler.is_compiling()


def _product(x: Tensor, lower: Tensor, transposed: bool) -> Tensor:
    """Multiply by blocks: one opaque op in a graph; in eager at once where nothing maps it."""
    if torch.compiler.is_compiling():
        opaque: Tensor = torch.ops.sngd.multiply_blocks(x, lower, transposed, None)
        return opaque
    if are_transforms_active():
        product: Tensor = _Multiply.apply(x, lower, transposed)  # type: ignore[no-untyped-call]
        return product
    # autograd takes no `out=`, so where it records, the function says the gradient.
    if x.requires_grad and torch.is_grad_enabled():
        return _apply_plainly(x, lower, transposed)
    return _multiply_blocks(x, lower, transposed)


class _Multiply(torch.autograd.Function):
    """`x A` or `x A^T` by blocks of columns."""

    @staticmethod
    def forward(x: Tensor, lower: Tensor, transposed: bool) -> Tensor:
        """Multiply the lower part of every block."""
        return _multiply_blocks(x, lower, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the matrix."""
        _, lower, ctx.transposed = inputs
        ctx.save_for_backward(lower)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return `g A^T` or `g A`."""
        (lower,) = ctx.saved_tensors
        return _product(gradients[0], lower, not ctx.transposed), None, None

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], x: Tensor, lower: Tensor, transposed: bool
    ) -> Batched:
        """Multiply the rows of all samples at once."""
        product = multiply_transposed if transposed else multiply
        return _of_samples(product, info.batch_size, dims, x, lower)


# What `Function.apply` calls where no transform is active, without its look at default arguments,
# which takes as long as two blocks.
_apply_plainly: Callable[[Tensor, Tensor, bool], Tensor]
_apply_plainly = super(torch.autograd.Function, _Multiply).apply


def _of_samples(
    product: Callable[[Tensor, Tensor], Tensor],
    samples: int,
    dims: tuple[int | None, ...],
    x: Tensor,
    lower: Tensor,
) -> Batched:
    """Take a product whose rows, or whose matrices, or both come in one for each sample."""
    # One matrix for all samples is one product over all their rows, which fills the device.
    rows = x.expand(samples, *x.shape) if dims[0] is None else x.movedim(dims[0], 0)
    if dims[1] is None:
        return product(lower, rows.flatten(0, 1)).view(rows.shape), 0
    return product(lower.movedim(dims[1], 0), rows), 0


def _multiply_blocks(x: Tensor, lower: Tensor, transposed: bool) -> Tensor:
    """Return `x A` or `x A^T`, each block of columns written where it belongs.

    Those from `s` to `e` of `x A` need the rows of A from `s` on; of `x A^T` the columns up to `e`.
    """
    product, width = torch.empty_like(x, memory_format=torch.contiguous_format), block_width(lower)
    for index, columns in enumerate(product.split(width, -1)):
        start, end = index * width, index * width + columns.shape[-1]
        # Below the diagonal only: what lies beyond is zeros, half of all multiply-adds.
        if transposed:
            torch.mm(x[:, :end], lower[start:end, :end].mT, out=columns)
        else:
            torch.mm(x[:, start:], lower[start:, start:end], out=columns)
    return product


def multiply_blocks(x: Tensor, lower: Tensor, transposed: bool, rows: Tensor | None) -> Tensor:
    """Return `x A` or `x A^T`: one node in a graph.

    `rows` are what a gradient x belongs to. They are not read: as an argument they are kept for
    the backward pass, so that a ReLU before them finds its mask in them. Inductor stores the mask
    itself otherwise, which takes a CPU as long as the product (torch 2.13).
    """
    product = multiply_transposed if transposed else multiply
    return product(lower, x)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, lower, ctx.transposed, _ = inputs
    ctx.save_for_backward(x, lower)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
    x, lower = ctx.saved_tensors
    return torch.ops.sngd.multiply_blocks(g, lower, not ctx.transposed, x), None, None, None


# Strides are left as they come: inductor would write a kernel that turns them.
torch.library.define(
    "sngd::multiply_blocks",
    "(Tensor x, Tensor lower, bool transposed, Tensor? rows) -> Tensor",
    tags=(torch.Tag.flexible_layout,),
)
torch.library.impl("sngd::multiply_blocks", "default", carrying_tangents(multiply_blocks))
torch.library.register_fake(
    "sngd::multiply_blocks",
    lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
)
torch.library.register_autograd("sngd::multiply_blocks", _backward, setup_context=_keep)
