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
def matmul_nt_tiles(  # type: ignore[no-untyped-def]
    a,  # [B, M, K], any strides
    b,  # [B, N, K], any strides
    addend,  # [B, M, N], any strides
    out,  # [B, M, N], contiguous
    squares,  # [B, programs]: sums of squares
    programs,
    rows,
    columns,
    depth,
    a_batch, a_row, a_depth,
    b_batch, b_row, b_depth,
    d_batch, d_row, d_column,
    alpha,
    beta,
    gamma,
    ADDEND: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    """Compute one tile of one result, its mirror image if it is symmetric, and its squares."""
    batch = (tl.program_id(0) // programs).to(tl.int64)
    tile = tl.program_id(0) % programs
    column_tiles = tl.cdiv(columns, BLOCK)
    if SYMMETRIC:
        row_tile, column_tile = tile_of_pair(tile, column_tiles)
    else:
        row_tile, column_tile = tile // column_tiles, tile % column_tiles
    local = tl.arange(0, BLOCK)
    inner = tl.arange(0, BLOCK_DEPTH)
    row = row_tile * BLOCK + local
    column = column_tile * BLOCK + local
    left = a + batch * a_batch + row_tile.to(tl.int64) * BLOCK * a_row
    right = b + batch * b_batch + column_tile.to(tl.int64) * BLOCK * b_row
    left_offsets = local[:, None] * a_row + inner[None, :] * a_depth
    right_offsets = local[:, None] * b_row + inner[None, :] * b_depth
    left_step = tl.full((), BLOCK_DEPTH, tl.int64) * a_depth
    right_step = tl.full((), BLOCK_DEPTH, tl.int64) * b_depth
    product = tl.zeros((BLOCK, BLOCK), tl.float32)
    for first in range(0, depth, BLOCK_DEPTH):
        inside = (first + inner < depth)[None, :]
        a_tile = tl.load(left + left_offsets, mask=inside & (row < rows)[:, None], other=0.0)
        b_tile = tl.load(right + right_offsets, mask=inside & (column < columns)[:, None], other=0.0)
        product = tl.dot(a_tile, tl.trans(b_tile), product, input_precision=PRECISION)
        left += left_step
        right += right_step

    inside = (row < rows)[:, None] & (column < columns)[None, :]
    result = alpha * product  # [BLOCK, BLOCK]
    if ADDEND:
        start = addend + batch * d_batch
        start += row_tile.to(tl.int64) * BLOCK * d_row + column_tile.to(tl.int64) * BLOCK * d_column
        offsets = local[:, None] * d_row + local[None, :] * d_column
        result += beta * tl.load(start + offsets, mask=inside, other=0.0)
    result += tl.where(row[:, None] == column[None, :], gamma, 0.0)
    out += batch * rows * columns
    if SYMMETRIC:
        mirrored = tl.trans(result)
        if row_tile == column_tile:
            result = tl.where(local[:, None] <= local[None, :], result, mirrored)
        else:
            lower = out + column[:, None].to(tl.int64) * columns + row[None, :]
            in_lower = (column < rows)[:, None] & (row < columns)[None, :]
            tl.store(lower, mirrored, mask=in_lower)
    tl.store(out + row[:, None].to(tl.int64) * columns + column[None, :], result, mask=inside)
    square = tl.sum(tl.sum(tl.where(inside, result * result, 0.0), axis=1), axis=0)
    if SYMMETRIC:
        square *= tl.where(row_tile == column_tile, 1.0, 2.0)
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
        a,
        b,
        addend,
        out,
        squares,
        programs,
        rows,
        columns,
        depth,
        *a.stride(),
        *b.stride(),
        *(addend.stride() if addend is not None else (0, 0, 0)),
        alpha,
        beta,
        gamma,
        ADDEND=addend is not None,
        SYMMETRIC=symmetric,
        PRECISION=target.product(torch.float32),
        BLOCK=config.block,
        BLOCK_DEPTH=config.depth if wide else config.unaligned_depth,
        num_warps=config.warps,
        num_stages=config.stages,
        enable_fp_fusion=True,
    )
    return out, squares.sum(-1).sqrt()
