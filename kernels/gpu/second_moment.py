"""`second_moment` in Triton: tiles of the upper triangle, rows split into parts, summed in order.

Every tile of `G = x^T x` on or above the diagonal is one program per part of the rows, so that half
of the products of a general GEMM are never taken. The column of ones is no column: further programs
add the columns up, one for each block of them; left to the programs on the diagonal, they took
twice as long as the others, and the whole waited for them.
"""

from typing import NamedTuple

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
from .target import Family, compact, copies_are_wide, current_target


class Config(NamedTuple):
    """Give the block shape and the launch options of one kernel.

    Attributes:
        block_rows: rows of a step, where 16-byte copies are possible.
        unaligned_rows: rows of a step elsewhere: single entries pass through registers.
        block_width: rows and columns of a tile of the result.
        warps: warps of a program.
        stages: steps in flight.
    """

    block_rows: int
    unaligned_rows: int
    block_width: int
    warps: int
    stages: int


# By family and bytes of an entry. Two tiles of block_rows x block_width for each stage lie in
# shared memory; 8 warps share the 128 x 128 accumulator, 64 registers a thread.
CONFIGS: dict[tuple[Family, int], Config] = {
    ("sm_80", 2): Config(64, 16, 128, 8, 3),
    ("sm_80", 4): Config(16, 16, 128, 8, 4),
    ("sm_90", 2): Config(64, 16, 128, 8, 4),
    ("sm_90", 4): Config(16, 16, 128, 8, 4),
    ("sm_100", 2): Config(32, 32, 128, 8, 4),
    ("sm_100", 4): Config(16, 16, 128, 8, 4),
    ("sm_120", 2): Config(64, 16, 128, 8, 3),
    ("sm_120", 4): Config(32, 16, 64, 4, 3),
    ("gfx942", 2): Config(32, 32, 128, 8, 2),
    ("gfx942", 4): Config(16, 16, 128, 8, 2),
    ("interpreter", 2): Config(64, 64, 64, 4, 1),
    ("interpreter", 4): Config(64, 64, 64, 4, 1),
}


@triton.jit
def second_moment_partials(  # type: ignore[no-untyped-def]
    x,  # [N, D], any strides
    partials,  # [S, 1, P, BLOCK_WIDTH, BLOCK_WIDTH]
    sums,  # [S, 1, sums_width]
    row_count, width, stride_row, stride_column, rows_per_split, tiles, sums_width,
    BIAS: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Multiply two block columns of one part of the rows, or add the columns of one up."""
    # The sums come first: they take longer than a product, and the others fill the time.
    pair = tl.program_id(0) - (tiles if BIAS else 0)
    split = tl.program_id(1).to(tl.int64)
    pairs = tiles * (tiles + 1) // 2
    row_tile, column_tile = tile_of_pair(pair, tiles)
    local = tl.arange(0, BLOCK_WIDTH)
    rows = tl.arange(0, BLOCK_ROWS)[:, None]
    # Bases are 64-bit scalars, offsets inside a tile 32-bit: fewer registers, no overflow.
    offsets = rows * stride_row + local[None, :] * stride_column  # [BLOCK_ROWS, BLOCK_WIDTH]
    first_row = split * rows_per_split
    step = tl.full((), BLOCK_ROWS, tl.int64) * stride_row
    rows_left = tl.minimum(rows_per_split, row_count - first_row).to(tl.int32)
    if BIAS and pair < 0:
        tile = pair + tiles
        column, inside = block_column(
            x, first_row, tile, width, stride_row, stride_column, BLOCK_WIDTH
        )
        sums += split * sums_width
        add_columns(
            sums, tile, tiles, column, offsets, inside, rows_left, step, BLOCK_ROWS, BLOCK_WIDTH
        )
        return
    left, in_left = block_column(
        x, first_row, row_tile, width, stride_row, stride_column, BLOCK_WIDTH
    )
    right, in_right = block_column(
        x, first_row, column_tile, width, stride_row, stride_column, BLOCK_WIDTH
    )
    product = tl.zeros((BLOCK_WIDTH, BLOCK_WIDTH), tl.float32)
    for first in range(0, rows_left, BLOCK_ROWS):
        inside = first + rows < rows_left
        a = tl.load(left + offsets, mask=inside & in_left, other=0.0)
        b = tl.load(right + offsets, mask=inside & in_right, other=0.0)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        product = tl.dot(tl.trans(a), b, product, input_precision=PRECISION)
        left += step
        right += step
    block = partials + (split * pairs + pair) * (BLOCK_WIDTH * BLOCK_WIDTH)
    tl.store(block + local[:, None] * BLOCK_WIDTH + local[None, :], product)


@triton.jit
def add_columns(  # type: ignore[no-untyped-def]
    sums, tile, tiles, column, offsets, inside, rows_left, step,
    BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Add up the rows of a block column, and behind all columns count them."""
    rows = tl.arange(0, BLOCK_ROWS)[:, None]
    total = tl.zeros((BLOCK_WIDTH,), tl.float32)
    for first in range(0, rows_left, BLOCK_ROWS):
        a = tl.load(column + offsets, mask=(first + rows < rows_left) & inside, other=0.0)
        total += tl.sum(a.to(tl.float32), axis=0)
        column += step
    tl.store(sums + tile * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH), total)
    if tile == 0:
        # Parts are rounded up to whole steps, so the last of many may begin behind the last row.
        tl.store(sums + tiles * BLOCK_WIDTH, tl.maximum(rows_left, 0).to(tl.float32))


def launch_second_moment(x: Tensor, *, bias: bool, out: Tensor | None = None) -> Tensor:
    """Launch both kernels for `x` `[N, D]` of 16 or 32 bits, `N, D >= 1`.

    Args:
        x: rows, any strides.
        bias: whether every row ends in a 1.
        out: float32 `[D + bias, D + bias]`, any strides, to be added to.

    Returns:
        `out` or a new tensor.
    """
    target = current_target()
    config = CONFIGS[target.family, x.element_size()]
    x = compact(x)
    count, width = x.shape
    tiles = triton.cdiv(width, config.block_width)
    pairs = tiles * (tiles + 1) // 2
    block_rows = config.block_rows if copies_are_wide(x) else config.unaligned_rows
    row_blocks = triton.cdiv(count, block_rows)
    # 0.21 ms at 65536 x 512 on an H200; 0.42 with the sums left to the programs on the diagonal.
    programs = pairs + tiles if bias else pairs
    splits = splits_of_rows(row_blocks, programs, target.processors)
    partials, sums = allocate_partials(x, splits, 1, width, config.block_width)
    second_moment_partials[(programs, splits)](
        x, partials, sums,
        count, width, *x.stride(),
        triton.cdiv(row_blocks, splits) * block_rows, tiles, sums.shape[-1],
        BIAS=bias,
        WIDEN=target.widen,
        PRECISION=target.product(x.dtype),
        BLOCK_ROWS=block_rows,
        BLOCK_WIDTH=config.block_width,
        num_warps=config.warps,
        num_stages=config.stages,
        enable_fp_fusion=True,
    )  # fmt: skip
    moment = out
    if moment is None:
        moment = x.new_empty((width + bias, width + bias), dtype=torch.float32)
    join_partials_(moment.unsqueeze(0), partials, sums, width=width, bias=bias, add=out is not None)
    return moment
