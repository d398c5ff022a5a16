"""`squared_sum` in Triton: every number is read once, rows split into parts, summed in order.

A program takes a block of columns of one part of the rows, and keeps a tile of sums in registers.
`channel_second_moment` is the same with the sums of the numbers beside those of their squares, and
with the columns added up, too, where they are the positions of one channel.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .partials import splits_of_rows
from .target import compact, current_target

# Numbers in a tile, and in each of one or two accumulators: for a thread of 4 warps 16 with one, 8
# with two. 16 with two spill 2 registers on sm_120 with Triton 3.6.
TILE = 2048
WARPS = 4
LARGEST_WIDTH = 256

# Programs that a processor holds at a time; memory is the limit, not the processors.
PROGRAMS = 4


class Parts(NamedTuple):
    """Give the partial sums `[parts, *]` of squares and, where asked for, of the numbers."""

    squares: Tensor
    sums: Tensor | None


@triton.jit
def squared_sum_partials(  # type: ignore[no-untyped-def]
    x,  # [G, N, D], any strides
    squares,  # [S, G, D], or [S * T, G] where columns are joined
    sums,  # the same
    groups, row_count, width, stride_group, stride_row, stride_column,
    tiles, splits, rows_per_split,
    SUMS: tl.constexpr, JOIN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Add up a block of columns of one part of the rows of one group."""
    program = tl.program_id(0)
    split = (program % splits).to(tl.int64)
    tile = (program // splits % tiles).to(tl.int64)
    group = (program // (splits * tiles)).to(tl.int64)
    local_rows = tl.arange(0, BLOCK_ROWS)[:, None]
    local = tl.arange(0, BLOCK_WIDTH)
    columns = tile * BLOCK_WIDTH + local
    first_row = split * rows_per_split
    # Bases are 64-bit scalars, offsets inside a tile 32-bit: fewer registers, no overflow.
    block = x + group * stride_group + first_row * stride_row
    block += tile * BLOCK_WIDTH * stride_column
    offsets = local_rows * stride_row + local[None, :] * stride_column
    step = tl.full((), BLOCK_ROWS, tl.int64) * stride_row
    rows_left = tl.minimum(rows_per_split, row_count - first_row).to(tl.int32)
    squared = tl.zeros((BLOCK_ROWS, BLOCK_WIDTH), tl.float32)
    summed = tl.zeros((BLOCK_ROWS, BLOCK_WIDTH), tl.float32)
    for first in range(0, rows_left, BLOCK_ROWS):
        inside = (first + local_rows < rows_left) & (columns < width)[None, :]
        values = tl.load(block + offsets, mask=inside, other=0.0).to(tl.float32)
        squared += values * values
        if SUMS:
            summed += values
        block += step
    if JOIN:
        at = (split * tiles + tile) * groups + group
        tl.store(squares + at, tl.sum(tl.sum(squared, axis=0), axis=0))
        if SUMS:
            tl.store(sums + at, tl.sum(tl.sum(summed, axis=0), axis=0))
    else:
        at = (split * groups + group) * width + columns
        tl.store(squares + at, tl.sum(squared, axis=0), mask=columns < width)
        if SUMS:
            tl.store(sums + at, tl.sum(summed, axis=0), mask=columns < width)


def launch_partials(x: Tensor, *, sums: bool, join: bool) -> Parts:
    """Launch the kernel for `x` `[G, N, D]` of 16 or 32 bits, `G, N, D >= 1`.

    Args:
        x: rows of groups, any strides.
        sums: whether the numbers are summed as well as their squares.
        join: whether the columns are added up, too.

    Returns:
        Partial sums, float32 `[parts, G, D]`, or `[parts, G]` where columns are joined.
    """
    tile = TILE // 2 if sums else TILE
    # A tile of one column is that many rows long.
    x = compact(x, block=tile)
    groups, count, width = x.shape
    block_width = min(LARGEST_WIDTH, triton.next_power_of_2(width))
    block_rows = tile // block_width
    tiles, row_blocks = triton.cdiv(width, block_width), triton.cdiv(count, block_rows)
    # `splits_of_rows` takes twice as many: about eight programs for each.
    processors = PROGRAMS * current_target().processors
    splits = splits_of_rows(row_blocks, groups * tiles, processors)
    shape = (splits * tiles, groups) if join else (splits, groups, width)
    squares = x.new_empty(shape, dtype=torch.float32)
    summed = x.new_empty(shape, dtype=torch.float32) if sums else None
    squared_sum_partials[(groups * tiles * splits,)](
        x, squares, squares if summed is None else summed,
        groups, count, width, *x.stride(),
        tiles, splits, triton.cdiv(row_blocks, splits) * block_rows,
        SUMS=sums,
        JOIN=join,
        BLOCK_ROWS=block_rows,
        BLOCK_WIDTH=block_width,
        num_warps=WARPS,
        enable_fp_fusion=True,
    )  # fmt: skip
    return Parts(squares, summed)


def launch_squared_sum(x: Tensor) -> Tensor:
    """Return the sum of the squares of rows `x` `[N, D]` or `[G, N, D]`, float32 `[*, D]`."""
    rows = x if x.dim() == 3 else x.unsqueeze(0)
    return launch_partials(rows, sums=False, join=False).squares.sum(0).view(*x.shape[:-2], -1)
