"""What the second moments share: the tiles of a triangle, and the sum of their partial results.

Legend: D width, T = ceil(D / BLOCK_WIDTH) tiles along it, P = T (T + 1) / 2 tiles on and above the
diagonal, B independent moments, S parts the rows were split into.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows and columns of what one program adds up: four of them are a tile of 128 x 128.
PART = 64
# Room behind the column sums for the number of rows, rounded so that what follows stays aligned.
COUNT_ROOM = 16


@triton.jit
def tile_of_pair(pair, tiles):  # type: ignore[no-untyped-def]
    """Return row and column of tile number `pair` of a triangle, row <= column.

    Column = row + step around a circle of T tiles reaches each unordered pair once: steps 0 to
    (T - 1) / 2 for an odd T; for an even one the last step, T / 2, only from the first T / 2 rows.
    """
    first = pair % tiles
    second = (first + pair // tiles) % tiles
    return tl.minimum(first, second), tl.maximum(first, second)


@triton.jit
def add_partials(  # type: ignore[no-untyped-def]
    out,  # [B, D + BIAS, D + BIAS], any strides
    partials,  # [S, B, P, BLOCK_WIDTH, BLOCK_WIDTH]
    sums,  # [S, B, T * BLOCK_WIDTH + COUNT_ROOM]
    pairs,
    tiles,
    width,
    splits,
    partials_stride,  # from one split to the next
    sums_stride,
    stride_batch,
    stride_row,
    stride_column,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    PART: tl.constexpr,
    COUNT_ROOM: tl.constexpr,
):
    """Add the splits' tiles in their order, then write each entry and its mirror image."""
    PARTS: tl.constexpr = BLOCK_WIDTH // PART
    program = tl.program_id(0)
    part_column = program % PARTS
    part_row = program // PARTS % PARTS
    pair = program // (PARTS * PARTS) % pairs
    batch = (program // (PARTS * PARTS * pairs)).to(tl.int64)
    row_tile, column_tile = tile_of_pair(pair, tiles)
    row_start = row_tile * BLOCK_WIDTH + part_row * PART
    column_start = column_tile * BLOCK_WIDTH + part_column * PART
    if row_start <= column_start:
        local = tl.arange(0, PART)
        inside = (part_row * PART + local)[:, None] * BLOCK_WIDTH
        inside += (part_column * PART + local)[None, :]
        tile = partials + (batch * pairs + pair) * (BLOCK_WIDTH * BLOCK_WIDTH) + inside
        total = tl.zeros((PART, PART), tl.float32)  # [PART, PART]
        for _ in range(splits):
            total += tl.load(tile)
            tile += partials_stride
        mirrored = tl.trans(total)
        if row_start == column_start:
            total = tl.where(local[:, None] <= local[None, :], total, mirrored)
        rows = (row_start + local).to(tl.int64)
        columns = (column_start + local).to(tl.int64)
        here = out + batch * stride_batch
        upper = here + rows[:, None] * stride_row + columns[None, :] * stride_column
        in_upper = (rows[:, None] < width) & (columns[None, :] < width)
        if ADD:
            tl.store(upper, tl.load(upper, mask=in_upper, other=0.0) + total, mask=in_upper)
        else:
            tl.store(upper, total, mask=in_upper)
        if row_start != column_start:
            lower = here + columns[:, None] * stride_row + rows[None, :] * stride_column
            in_lower = (columns[:, None] < width) & (rows[None, :] < width)
            if ADD:
                mirrored += tl.load(lower, mask=in_lower, other=0.0)
            tl.store(lower, mirrored, mask=in_lower)
        elif BIAS:
            sums += batch * (tiles * BLOCK_WIDTH + COUNT_ROOM)
            column_sum = tl.zeros((PART,), tl.float32)
            count = tl.zeros((), tl.float32)
            for _ in range(splits):
                column_sum += tl.load(sums + row_start + local)
                count += tl.load(sums + tiles * BLOCK_WIDTH)
                sums += sums_stride
            in_width = rows < width
            last = tl.zeros((), tl.int64) + width
            beside = here + rows * stride_row + last * stride_column
            below = here + last * stride_row + rows * stride_column
            corner = here + last * stride_row + last * stride_column
            if ADD:
                tl.store(beside, tl.load(beside, mask=in_width) + column_sum, mask=in_width)
                tl.store(below, tl.load(below, mask=in_width) + column_sum, mask=in_width)
            else:
                tl.store(beside, column_sum, mask=in_width)
                tl.store(below, column_sum, mask=in_width)
            if row_start == 0:
                if ADD:
                    count += tl.load(corner)
                tl.store(corner, count)


def join_partials_(
    out: Tensor, partials: Tensor, sums: Tensor, *, width: int, bias: bool, add: bool
) -> Tensor:
    """Write or add the sum of all splits to `out` `[B, D + bias, D + bias]`, any strides."""
    splits, batches, pairs, block_width, _ = partials.shape
    parts = (block_width // PART) ** 2
    add_partials[(batches * pairs * parts,)](
        out,
        partials,
        sums,
        pairs,
        triton.cdiv(width, block_width),
        width,
        splits,
        partials.stride(0),
        sums.stride(0),
        *out.stride(),
        BIAS=bias,
        ADD=add,
        BLOCK_WIDTH=block_width,
        PART=PART,
        COUNT_ROOM=COUNT_ROOM,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return out


def allocate_partials(
    like: Tensor, splits: int, batches: int, width: int, block_width: int
) -> tuple[Tensor, Tensor]:
    """Allocate `[S, B, P, BLOCK_WIDTH, BLOCK_WIDTH]` and the sums beside them, uninitialised."""
    tiles = triton.cdiv(width, block_width)
    pairs = tiles * (tiles + 1) // 2
    partials = like.new_empty(
        (splits, batches, pairs, block_width, block_width), dtype=torch.float32
    )
    sums = like.new_empty((splits, batches, tiles * block_width + COUNT_ROOM), dtype=torch.float32)
    return partials, sums


def splits_of_rows(
    row_blocks: int, programs: int, processors: int, blocks_per_split: int = 8
) -> int:
    """Choose into how many parts to split the rows, so that every processor has work.

    Two programs per processor, but at least `blocks_per_split` steps each: fewer would spend their
    time on writing the partial result. It depends on shapes alone, so results are reproducible.
    """
    wanted = triton.cdiv(2 * processors, programs)
    return max(1, min(wanted, row_blocks // blocks_per_split))
