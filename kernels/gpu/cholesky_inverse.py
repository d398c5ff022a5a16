"""`cholesky_inverse` in Triton: one small matrix a program, factorised and inverted in registers.

Step k of the elimination needs row k and column k of what is left of `A` only, and row k of what is
there of `L^-1`. `A` is used up column by column while `L^-1` grows column by column, so both share
one tile: columns before k hold `L^-1`, those from k on the trailing matrix.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Largest matrix that fits into the registers of one program.
LARGEST = 128

# Warps by tile size: 8 to 64 entries of the tile a thread.
WARPS = {16: 1, 32: 1, 64: 4, 128: 16}


@triton.jit
def damped_tile(matrix, shift, readable, width, BIAS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Load `G + damping I` in the order of elimination, with the identity beyond its edge."""
    row = tl.arange(0, BLOCK)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    row_at, column_at = row, column
    if BIAS:  # the last one comes first
        row_at = tl.where(row == 0, width - 1, row - 1)
        column_at = tl.where(column == 0, width - 1, column - 1)
    inside = (row < readable) & (column < readable)
    tile = tl.load(matrix + (row_at * width + column_at), mask=inside, other=0.0)
    return tile + tl.where(row == column, tl.where(row < width, shift, 1.0), 0.0)


@triton.jit
def cholesky_inverse_tiles(  # type: ignore[no-untyped-def]
    matrices,  # [B, D, D], contiguous
    damping,  # [B]
    inverses,  # [B, D, D], contiguous
    info,  # [B], int32: 0, or what is wrong with the matrix already
    width, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Factorise one matrix, the bias first if there is one, and invert the factor."""
    batch = tl.program_id(0).to(tl.int64)
    start = batch * width * width
    failed = tl.load(info + batch)
    shift = tl.load(damping + batch)
    readable = tl.where(failed == 0, width, 0)  # what is wrong already must not raise a trap
    tile = damped_tile(matrices + start, shift, readable, width, BIAS, BLOCK)
    inverses += start
    row = tl.arange(0, BLOCK)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    order = tl.arange(0, BLOCK)
    # Where entry k of a row of L^-1 belongs.
    place = order
    if BIAS:
        place = tl.where(order == 0, width - 1, order - 1)
    for k in range(width):
        left = tl.sum(tl.where(column == k, tile, 0.0), axis=1)  # [BLOCK]
        top = tl.sum(tl.where(row == k, tile, 0.0), axis=0)
        pivot = tl.sum(tl.where(order == k, top, 0.0), axis=0)
        good = (pivot > 0.0) & (pivot < float("inf"))
        failed = tl.where((failed == 0) & (good == 0), k + 1, failed)
        scale = tl.div_rn(1.0, tl.sqrt_rn(tl.where(good, pivot, 1.0)))
        top = tl.where(order == k, 1.0, top) * scale
        # Row k of L^-1 is finished: it leaves the registers, and what happens to it is all one.
        finished = inverses + ((k + width - 1) % width if BIAS else k) * width
        tl.store(finished + place, tl.where(order <= k, top, 0.0), mask=order < width)
        below = tl.where(order > k, left * scale, 0.0)
        tile = tl.where(column == k, 0.0, tile) - below[:, None] * top[None, :]
    # Rows were stored as they were finished, before a later pivot failed.
    if failed != 0:
        for k in range(width):
            poison = tl.full((BLOCK,), float("nan"), tl.float32)
            tl.store(inverses + k * width + place, poison, mask=order < width)
    tl.store(info + batch, failed)


def launch_cholesky_inverse(
    matrices: Tensor, damping: Tensor, info: Tensor, *, bias: bool
) -> Tensor:
    """Launch one program for each of `matrices` float32 `[B, D, D]`, `1 <= D <= LARGEST`.

    Args:
        matrices: any strides.
        damping: float32 `[B]`, contiguous.
        info: int32 `[B]`, contiguous; the first bad pivot is written where it is 0.
        bias: whether to eliminate the last row and column first.

    Returns:
        `R` `[B, D, D]`, NaN where `info` is not 0.
    """
    count, width, _ = matrices.shape
    matrices = matrices.contiguous()
    inverses = torch.empty_like(matrices)
    block = max(16, triton.next_power_of_2(width))
    cholesky_inverse_tiles[(count,)](
        matrices,
        damping,
        inverses,
        info,
        width,
        BIAS=bias,
        BLOCK=block,
        num_warps=WARPS[block],
        num_stages=1,
        enable_fp_fusion=True,
    )
    return inverses
