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
def block_column(x, first_row, tile, width, stride_row, stride_column, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Point to the first entry of a block column, and mark its columns that exist, `[1, BLOCK]`."""
    start = x + first_row * stride_row + tile.to(tl.int64) * BLOCK * stride_column
    return start, (tile * BLOCK + tl.arange(0, BLOCK) < width)[None, :]


@triton.jit
def deposit(target, value, mask, ADD: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write `value`, or add it to what is there."""
    if ADD:
        value += tl.load(target, mask=mask, other=0.0)
    tl.store(target, value, mask=mask)


@triton.jit
def deposit_bias(  # type: ignore[no-untyped-def]
    out, sums, count_at, splits, sums_stride, start, width, stride_row, stride_column,
    ADD: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Fill PART entries of the last row and column, and the corner, in the order of the splits."""
    local = tl.arange(0, PART)
    column_sum = tl.zeros((PART,), tl.float32)
    count = tl.zeros((), tl.float32)
    for _ in range(splits):
        column_sum += tl.load(sums + start + local)
        count += tl.load(sums + count_at)
        sums += sums_stride
    rows = (start + local).to(tl.int64)
    last = tl.zeros((), tl.int64) + width
    deposit(out + rows * stride_row + last * stride_column, column_sum, rows < width, ADD)
    deposit(out + last * stride_row + rows * stride_column, column_sum, rows < width, ADD)
    if start == 0:
        corner = out + last * (stride_row + stride_column)
        if ADD:
            count += tl.load(corner)
        tl.store(corner, count)


@triton.jit
def add_partials(  # type: ignore[no-untyped-def]
    out,  # [B, D + BIAS, D + BIAS], any strides
    partials,  # [S, B, P, BLOCK_WIDTH, BLOCK_WIDTH]
    sums,  # [S, B, T * BLOCK_WIDTH + COUNT_ROOM]
    pairs, tiles, width, splits, partials_stride, sums_stride,
    stride_batch, stride_row, stride_column,
    BIAS: tl.constexpr, ADD: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, PART: tl.constexpr, COUNT_ROOM: tl.constexpr,
):  # fmt: skip
    """Add the splits' tiles in their order, then write each entry and its mirror image."""
    PARTS: tl.constexpr = BLOCK_WIDTH // PART
    program = tl.program_id(0)
    pair = program // (PARTS * PARTS) % pairs
    batch = (program // (PARTS * PARTS * pairs)).to(tl.int64)
    row_tile, column_tile = tile_of_pair(pair, tiles)
    local = tl.arange(0, PART)
    in_rows = program // PARTS % PARTS * PART
    in_columns = program % PARTS * PART
    row_start = row_tile * BLOCK_WIDTH + in_rows
    column_start = column_tile * BLOCK_WIDTH + in_columns
    out += batch * stride_batch
    # Of a tile on the diagonal the parts below it are written as mirror images of those above.
    if row_start <= column_start:
        part = (in_rows + local)[:, None] * BLOCK_WIDTH + (in_columns + local)[None, :]
        part = partials + (batch * pairs + pair) * (BLOCK_WIDTH * BLOCK_WIDTH) + part
        total = tl.zeros((PART, PART), tl.float32)  # [PART, PART]
        for _ in range(splits):
            total += tl.load(part)
            part += partials_stride
        mirrored = tl.trans(total)
        if row_start == column_start:
            total = tl.where(local[:, None] <= local[None, :], total, mirrored)
        rows = (row_start + local).to(tl.int64)
        columns = (column_start + local).to(tl.int64)
        inside = (rows[:, None] < width) & (columns[None, :] < width)
        upper = out + rows[:, None] * stride_row + columns[None, :] * stride_column
        deposit(upper, total, inside, ADD)
        if row_start != column_start:
            inside = (columns[:, None] < width) & (rows[None, :] < width)
            lower = out + columns[:, None] * stride_row + rows[None, :] * stride_column
            deposit(lower, mirrored, inside, ADD)
        elif BIAS:
            sums += batch * (tiles * BLOCK_WIDTH + COUNT_ROOM)
            deposit_bias(
                out, sums, tiles * BLOCK_WIDTH, splits, sums_stride, row_start, width,
                stride_row, stride_column, ADD, PART,
            )  # fmt: skip


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
    wanted = 2 * processors // programs  # one more would wait for a second round
    return max(1, min(int(wanted), row_blocks // blocks_per_split))
