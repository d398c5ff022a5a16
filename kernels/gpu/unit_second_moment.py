"""`unit_second_moment` in Triton: the rows are weighted in registers, once for each unit.

As `second_moment`, with one more axis of programs for the units and the left tile multiplied by
the unit's weights; the weighted rows of all units, `O N D` entries, never exist.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .partials import (
    allocate_partials,
    block_column,
    join_partials_,
    splits_of_rows,
    tile_of_pair,
)
from .second_moment import Config
from .target import Family, compact, copies_are_wide, current_target

# The left tile passes through registers to be weighted: half as many rows a step as without.
CONFIGS: dict[tuple[Family, int], Config] = {
    ("sm_80", 2): Config(32, 16, 64, 4, 3),
    ("sm_80", 4): Config(16, 16, 64, 4, 3),
    ("sm_90", 2): Config(64, 16, 128, 8, 3),
    ("sm_90", 4): Config(16, 16, 128, 8, 3),
    ("sm_100", 2): Config(64, 16, 128, 8, 3),
    ("sm_100", 4): Config(16, 16, 128, 8, 3),
    ("sm_120", 2): Config(32, 16, 64, 4, 3),
    ("sm_120", 4): Config(16, 16, 64, 4, 3),
    ("gfx942", 2): Config(32, 16, 64, 4, 2),
    ("gfx942", 4): Config(16, 16, 64, 4, 2),
    ("interpreter", 2): Config(64, 64, 64, 4, 1),
    ("interpreter", 4): Config(64, 64, 64, 4, 1),
}


@triton.jit
def weighted_product(a, b, weight, product, HALVES: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add `(weight a)^T b` to `product`, the weighted rows in float32 or in two bfloat16."""
    weighted = a.to(tl.float32) * weight
    if HALVES:
        # Two bfloat16 hold 16 bits of the weighted row; rounding to one would keep 8.
        high = weighted.to(tl.bfloat16)
        low = (weighted - high.to(tl.float32)).to(tl.bfloat16)
        product = tl.dot(tl.trans(high), b, product)
        product = tl.dot(tl.trans(low), b, product)
    else:
        product = tl.dot(tl.trans(weighted), b.to(tl.float32), product, input_precision=PRECISION)
    return product


@triton.jit
def weighted_sums(  # type: ignore[no-untyped-def]
    column, weights, offsets, inside, rows_left, step,
    BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Add up the weighted rows of a block column, and the weights."""
    rows = tl.arange(0, BLOCK_ROWS)[:, None]
    total = tl.zeros((BLOCK_WIDTH,), tl.float32)
    count = tl.zeros((), tl.float32)
    for first in range(0, rows_left, BLOCK_ROWS):
        in_rows = first + rows < rows_left
        a = tl.load(column + offsets, mask=in_rows & inside, other=0.0)
        of_row = tl.load(weights + first + rows, mask=in_rows, other=0.0)
        total += tl.sum(a.to(tl.float32) * of_row, axis=0)
        count += tl.sum(tl.sum(of_row, axis=1), axis=0)
        column += step
    return total, count


@triton.jit
def unit_second_moment_partials(  # type: ignore[no-untyped-def]
    x,  # [N, D], any strides
    weights,  # [O, N], float32, contiguous
    partials,  # [S, O, P, BLOCK_WIDTH, BLOCK_WIDTH]
    sums,  # [S, O, sums_width]
    row_count, width, stride_row, stride_column,
    rows_per_split, pairs, tiles, sums_width, partials_stride, sums_stride,
    BIAS: tl.constexpr, HALVES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Multiply two block columns, one of them weighted, over one part of the rows."""
    unit, pair = (tl.program_id(0) // pairs).to(tl.int64), tl.program_id(0) % pairs
    split = tl.program_id(1).to(tl.int64)
    row_tile, column_tile = tile_of_pair(pair, tiles)
    local, rows = tl.arange(0, BLOCK_WIDTH), tl.arange(0, BLOCK_ROWS)[:, None]
    offsets = rows * stride_row + local[None, :] * stride_column  # [BLOCK_ROWS, BLOCK_WIDTH]
    first_row = split * rows_per_split
    left, in_left = block_column(
        x, first_row, row_tile, width, stride_row, stride_column, BLOCK_WIDTH
    )
    right, in_right = block_column(
        x, first_row, column_tile, width, stride_row, stride_column, BLOCK_WIDTH
    )
    column = right
    weights += unit * row_count + first_row
    step = tl.full((), BLOCK_ROWS, tl.int64) * stride_row
    rows_left = tl.minimum(rows_per_split, row_count - first_row).to(tl.int32)
    product = tl.zeros((BLOCK_WIDTH, BLOCK_WIDTH), tl.float32)
    for first in range(0, rows_left, BLOCK_ROWS):
        inside = first + rows < rows_left
        a = tl.load(left + offsets, mask=inside & in_left, other=0.0)
        b = tl.load(right + offsets, mask=inside & in_right, other=0.0)
        weight = tl.load(weights + first + rows, mask=inside, other=0.0)
        product = weighted_product(a, b, weight, product, HALVES, PRECISION)
        left += step
        right += step
    tile = partials + split * partials_stride
    tile += (unit * pairs + pair) * (BLOCK_WIDTH * BLOCK_WIDTH)
    tl.store(tile + local[:, None] * BLOCK_WIDTH + local[None, :], product)
    if BIAS and row_tile == column_tile:
        total, count = weighted_sums(
            column, weights, offsets, in_right, rows_left, step, BLOCK_ROWS, BLOCK_WIDTH
        )
        sums += split * sums_stride + unit * sums_width
        tl.store(sums + column_tile * BLOCK_WIDTH + local, total)
        if column_tile == 0:
            tl.store(sums + tiles * BLOCK_WIDTH, count)


def launch_unit_second_moment(
    x: Tensor, weights: Tensor, *, bias: bool, out: Tensor | None = None
) -> Tensor:
    """Launch both kernels for `x` `[N, D]` and `weights` `[N, O]`, none of them empty.

    Args:
        x: rows of 16 or 32 bits, any strides.
        weights: any floating dtype and strides.
        bias: whether every row ends in a 1.
        out: float32 `[O, D + bias, D + bias]`, any strides, to be added to.

    Returns:
        `out` or a new tensor.
    """
    target = current_target()
    config = CONFIGS[target.family, x.element_size()]
    x = compact(x)
    count, width = x.shape
    units = weights.shape[1]
    block_rows = config.block_rows if copies_are_wide(x) else config.unaligned_rows
    # A program reads the weights of one unit row by row, so these lie side by side.
    of_units = weights.T.float().clone(memory_format=torch.contiguous_format)  # [O, N]
    row_blocks = triton.cdiv(count, block_rows)
    tiles = triton.cdiv(width, config.block_width)
    pairs = tiles * (tiles + 1) // 2
    splits = splits_of_rows(row_blocks, pairs * units, target.processors)
    partials, sums = allocate_partials(x, splits, units, width, config.block_width)
    unit_second_moment_partials[(pairs * units, splits)](
        x, of_units, partials, sums,
        count, width, *x.stride(),
        triton.cdiv(row_blocks, splits) * block_rows,
        pairs, tiles, sums.shape[-1], partials.stride(0), sums.stride(0),
        BIAS=bias,
        HALVES=x.dtype == torch.bfloat16 and not target.widen,
        PRECISION=target.product(torch.float32),
        BLOCK_ROWS=block_rows,
        BLOCK_WIDTH=config.block_width,
        num_warps=config.warps,
        num_stages=config.stages,
        enable_fp_fusion=True,
    )  # fmt: skip
    moments = out
    if moments is None:
        moments = x.new_empty((units, width + bias, width + bias), dtype=torch.float32)
    return join_partials_(moments, partials, sums, width=width, bias=bias, add=out is not None)
