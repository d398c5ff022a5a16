"""`matmul_nt` in Triton: `alpha A B^T + beta D + gamma I` in one pass, with its Frobenius norm.

What an iteration for a root needs: the identity, the addend and the residual's norm cost no further
pass over memory, and a symmetric result takes the tiles on and above the diagonal only.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .partials import tile_of_pair
from .target import Family, copies_are_wide, current_target


class Config(NamedTuple):
    """Give the block shape, `[block, depth]` of both operands, and the launch options."""

    block: int
    depth: int
    unaligned_depth: int
    warps: int
    stages: int


# Three products a step in tf32x3 keep both halves of both operands in registers: 64 x 64.
CONFIGS: dict[Family, Config] = {
    "sm_80": Config(64, 32, 16, 4, 3),
    "sm_90": Config(64, 32, 16, 4, 3),
    "sm_100": Config(64, 32, 16, 4, 3),
    "sm_120": Config(64, 32, 16, 4, 3),
    "gfx942": Config(64, 32, 32, 4, 2),
    "interpreter": Config(64, 64, 64, 4, 1),
}


@triton.jit
def product_tile(  # type: ignore[no-untyped-def]
    left, right, rows, columns, depth, a_row, a_depth, b_row, b_depth,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    """Multiply `rows` rows from `left` on by `columns` rows from `right` on: `[BLOCK, BLOCK]`."""
    local = tl.arange(0, BLOCK)[:, None]
    inner = tl.arange(0, BLOCK_DEPTH)[None, :]
    left_offsets = local * a_row + inner * a_depth
    right_offsets = local * b_row + inner * b_depth
    left_step = tl.full((), BLOCK_DEPTH, tl.int64) * a_depth
    right_step = tl.full((), BLOCK_DEPTH, tl.int64) * b_depth
    product = tl.zeros((BLOCK, BLOCK), tl.float32)
    for first in range(0, depth, BLOCK_DEPTH):
        inside = first + inner < depth
        a_tile = tl.load(left + left_offsets, mask=inside & (local < rows), other=0.0)
        b_tile = tl.load(right + right_offsets, mask=inside & (local < columns), other=0.0)
        product = tl.dot(a_tile, tl.trans(b_tile), product, input_precision=PRECISION)
        left += left_step
        right += right_step
    return product


@triton.jit
def matmul_nt_tiles(  # type: ignore[no-untyped-def]
    a,  # [B, M, K], any strides
    b,  # [B, N, K], any strides
    addend,  # [B, M, N], any strides
    out,  # [B, M, N], contiguous
    squares,  # [B, programs]: sums of squares
    programs, rows, columns, depth,
    a_batch, a_row, a_depth, b_batch, b_row, b_depth, d_batch, d_row, d_column,
    alpha, beta, gamma,
    ADDEND: tl.constexpr, SYMMETRIC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    """Compute one tile of one result, its mirror image if it is symmetric, and its squares."""
    batch, tile = (tl.program_id(0) // programs).to(tl.int64), tl.program_id(0) % programs
    column_tiles = tl.cdiv(columns, BLOCK)
    row_tile, column_tile = tile // column_tiles, tile % column_tiles
    if SYMMETRIC:
        row_tile, column_tile = tile_of_pair(tile, column_tiles)
    row_start, column_start = row_tile.to(tl.int64) * BLOCK, column_tile.to(tl.int64) * BLOCK
    result = alpha * product_tile(
        a + batch * a_batch + row_start * a_row, b + batch * b_batch + column_start * b_row,
        rows - row_start, columns - column_start, depth, a_row, a_depth, b_row, b_depth,
        PRECISION, BLOCK, BLOCK_DEPTH,
    )  # fmt: skip
    local = tl.arange(0, BLOCK)
    row, column = row_start + local, column_start + local
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    if ADDEND:
        start = addend + batch * d_batch + row_start * d_row + column_start * d_column
        offsets = local[:, None] * d_row + local[None, :] * d_column
        result += beta * tl.load(start + offsets, mask=inside, other=0.0)
    result += tl.where(row[:, None] == column[None, :], gamma, 0.0)
    out += batch * rows * columns
    square = tl.sum(tl.sum(tl.where(inside, result * result, 0.0), axis=1), axis=0)
    if SYMMETRIC:
        mirrored = tl.trans(result)
        if row_tile == column_tile:
            result = tl.where(local[:, None] <= local[None, :], result, mirrored)
        else:
            square *= 2.0
            in_lower = (column < rows)[:, None] & (row < columns)[None, :]
            tl.store(out + column[:, None] * columns + row[None, :], mirrored, mask=in_lower)
    tl.store(out + row[:, None] * columns + column[None, :], result, mask=inside)
    tl.store(squares + batch * programs + tile, square)


def launch_matmul_nt(
    a: Tensor,
    b: Tensor,
    addend: Tensor | None,
    *,
    alpha: float,
    beta: float,
    gamma: float,
    symmetric: bool,
) -> tuple[Tensor, Tensor]:
    """Launch one program for each tile of `a` `[B, M, K]` times `b` `[B, N, K]`, none empty.

    Args:
        a: float32, any strides.
        b: float32, any strides.
        addend: `[B, M, N]` or nothing.
        alpha: factor of the product.
        beta: factor of the addend.
        gamma: factor of the identity.
        symmetric: compute the upper triangle, and mirror it.

    Returns:
        The result `[B, M, N]` and its Frobenius norms `[B]`.
    """
    target = current_target()
    config = CONFIGS[target.family]
    batches, rows, depth = a.shape
    columns = b.shape[1]
    tiles = triton.cdiv(columns, config.block)
    programs = triton.cdiv(rows, config.block) * tiles
    if symmetric:
        programs = tiles * (tiles + 1) // 2
    wide = copies_are_wide(a) and copies_are_wide(b)
    out = a.new_empty(batches, rows, columns)
    squares = a.new_empty(batches, programs)
    matmul_nt_tiles[(batches * programs,)](
        a, b, addend, out, squares,
        programs, rows, columns, depth,
        *a.stride(), *b.stride(), *((0, 0, 0) if addend is None else addend.stride()),
        alpha, beta, gamma,
        ADDEND=addend is not None,
        SYMMETRIC=symmetric,
        PRECISION=target.product(torch.float32),
        BLOCK=config.block,
        BLOCK_DEPTH=config.depth if wide else config.unaligned_depth,
        num_warps=config.warps,
        num_stages=config.stages,
        enable_fp_fusion=True,
    )  # fmt: skip
    return out, squares.sum(-1).sqrt()
