"""`conv_second_moment` in Triton for stride 1: products by offsets of taps, straight from `x`.

The block of the moment for taps p and q is a sum over a window of positions. Only windows at the
origin (`min(p, q) = 0` along every axis) are summed in full; a window one tap further differs in
`2 e` planes, `e = min(dilation, outputs)`: those that leave it and those that enter it.
conv_taps.py derives it; docs/kernels/conv_second_moment.md counts it.

Legend, all with three axes, of which the first may have size 1: k taps, L outputs, d dilation,
C channels of a group, N images. A task is (p1, q1, p2, q2, p3); its columns are (q3, channel), so
that `a` is loaded once for all shifts along the last axis. Blocks with q3 < p3 are mirror images.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..conv.geometry import ConvGeometry
from ..moments.rows import mirror_
from .partials import splits_of_rows
from .target import Family, current_target


class Config(NamedTuple):
    """Give the block shape and the launch options: positions, channels of `a`, columns of `b`."""

    block_positions: int
    block_rows: int
    block_columns: int
    warps: int
    stages: int


# By bytes of an entry. Where 16 channels lie side by side they are copied 16 bytes at a time, and
# large tiles pay where there are many. Elsewhere entries are gathered through registers: small
# tiles, so that addresses and masks fit beside the accumulator.
GATHER = {2: Config(32, 64, 64, 4, 2), 4: Config(16, 64, 64, 8, 2)}
COPIES = {2: Config(64, 64, 64, 4, 4), 4: Config(32, 64, 64, 4, 3)}
LARGE_COPIES = COPIES | {2: Config(64, 128, 128, 8, 3)}
INTERPRETED = {2: Config(64, 16, 64, 4, 1), 4: Config(64, 16, 64, 4, 1)}
MANY_CHANNELS = 128


@triton.jit
def window_start(u, slides, dilation, outputs):  # type: ignore[no-untyped-def]
    """Locate position u: in a window at the origin, or in the planes that leave, then enter it.

    A window one tap before counts `dilation` less. Returns the position and whether it leaves.
    """
    reach = tl.minimum(dilation, outputs)
    leaving = slides & (u < reach)
    moved = tl.where(leaving, u - dilation, u + outputs - 2 * reach)
    return tl.where(slides, moved, u), leaving


@triton.jit
def is_inside(y1, y2, i1, i2):  # type: ignore[no-untyped-def]
    """Whether positions along the first two axes lie in the image, not in its padding."""
    return (y1 >= 0) & (y1 < i1) & (y2 >= 0) & (y2 < i2)


@triton.jit
def task_of(task, k1, k2, k3):  # type: ignore[no-untyped-def]
    """Return p1, q1, p2, q2, p3 of a task, and which axis slides: 1 to 3, or 0 for none."""
    p3 = task % k3
    q2 = task // k3 % k2
    p2 = task // (k3 * k2) % k2
    q1 = task // (k3 * k2 * k2) % k1
    p1 = task // (k3 * k2 * k2 * k1)
    axis = tl.where(tl.minimum(p1, q1) > 0, 1, 0)
    axis = tl.where(tl.minimum(p2, q2) > 0, 2, axis)
    return p1, q1, p2, q2, p3, tl.where(p3 > 0, 3, axis)


@triton.jit
def extent(slides, dilation, outputs):  # type: ignore[no-untyped-def]
    """Count the positions to visit along one axis: all, or the planes that change."""
    return tl.where(slides, 2 * tl.minimum(dilation, outputs), outputs)


@triton.jit
def tap_products(  # type: ignore[no-untyped-def]
    x,  # [N, groups * C, I1, I2, I3], any strides
    partials,  # [S, groups, tasks, C, k3 * C]
    images, channels,
    i1, i2, i3, k1, k2, k3, l1, l2, l3, d1, d2, d3,
    m1, m2, m3,  # padding
    stride_image, stride_channel, s1, s2, s3, tasks, partials_stride,
    WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Multiply what tap p sees by what taps (q1, q2, any q3) see, in one part of the positions."""
    column_tiles = tl.cdiv(k3 * channels, BLOCK_COLUMNS)
    tiles = column_tiles * tl.cdiv(channels, BLOCK_ROWS)
    tile = tl.program_id(0) % tiles
    task = tl.program_id(0) // tiles % tasks
    group = (tl.program_id(0) // (tiles * tasks)).to(tl.int64)
    p1, q1, p2, q2, p3, axis = task_of(task, k1, k2, k3)
    n1, n2, n3 = extent(axis == 1, d1, l1), extent(axis == 2, d2, l2), extent(axis == 3, d3, l3)
    positions = images * n1 * n2 * n3
    per_split = tl.cdiv(tl.cdiv(positions, BLOCK_POSITIONS), tl.num_programs(1)) * BLOCK_POSITIONS
    first = tl.program_id(1) * per_split
    end = tl.minimum(first + per_split, positions)
    row = tile // column_tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tile % column_tiles * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    q3 = column // channels
    column_offset = column % channels * stride_channel + q3 * d3 * s3
    x += group * channels * stride_channel
    product = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in range(first, end, BLOCK_POSITIONS):
        position = start + tl.arange(0, BLOCK_POSITIONS)[:, None]
        image = x + (position // (n3 * n2 * n1)).to(tl.int64) * stride_image
        t1, leaving1 = window_start(position // (n3 * n2) % n1, axis == 1, d1, l1)
        t2, leaving2 = window_start(position // n3 % n2, axis == 2, d2, l2)
        t3, leaving3 = window_start(position % n3, axis == 3, d3, l3)
        t1, t2, t3 = t1 - m1, t2 - m2, t3 - m3
        a1, a2, a3 = t1 + p1 * d1, t2 + p2 * d2, t3 + p3 * d3
        b1, b2, b3 = t1 + q1 * d1, t2 + q2 * d2, t3 + q3 * d3
        seen = (position < end) & is_inside(a1, a2, i1, i2) & (a3 >= 0) & (a3 < i3)
        a = image + (a1 * s1 + a2 * s2 + a3 * s3) + row[None, :] * stride_channel
        a = tl.load(a, mask=seen & (row < channels)[None, :], other=0.0)
        seen = (position < end) & is_inside(b1, b2, i1, i2) & (q3 < k3) & (b3 >= 0) & (b3 < i3)
        b = image + (b1 * s1 + b2 * s2 + t3 * s3) + column_offset
        b = tl.load(b, mask=seen, other=0.0)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        a = tl.where(leaving1 | leaving2 | leaving3, -a, a)
        product = tl.dot(tl.trans(a), b, product, input_precision=PRECISION)
    block = partials + tl.program_id(1).to(tl.int64) * partials_stride
    block += (group * tasks + task) * channels * (channels * k3)
    entry = block + row[:, None] * (channels * k3) + column
    tl.store(entry, product, mask=(row < channels)[:, None] & (q3 < k3))


def launch_conv_second_moment(out: Tensor, x: Tensor, geometry: ConvGeometry) -> Tensor:
    """Overwrite float32 `out` `[groups, D, D]` by the moment of `x` `[N, C, *spatial]`."""
    # The copy costs next to nothing beside gathering channels one by one: with it, and one tap left
    # to rows, tap products of ResNet-50 took 2.9 ms of an observed step, not 54 (decision 18).
    blocks = launch_tap_products(channels_last(x), geometry)
    slide_(blocks)
    return assemble_(out, blocks)


def launch_tap_products(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """Sum windows and slides for all tasks: `[groups, k1, k1, k2, k2, k3, C, k3, C]`."""
    target = current_target()
    config = config_of(target.family, x, geometry.channels)
    missing = 3 - len(geometry.kernel)
    ones, zeros = (1,) * missing, (0,) * missing
    kernel = ones + geometry.kernel
    channels, groups = geometry.channels, geometry.groups
    tasks = kernel[0] ** 2 * kernel[1] ** 2 * kernel[2]
    columns = kernel[2] * channels
    programs = triton.cdiv(channels, config.block_rows) * triton.cdiv(columns, config.block_columns)
    position_blocks = triton.cdiv(geometry.images * geometry.positions, config.block_positions)
    # The windows summed in full take nearly all the time: one in k for each of the first two axes.
    heavy = programs * groups * max(1, (2 * kernel[0] - 1) * (2 * kernel[1] - 1))
    splits = splits_of_rows(position_blocks, heavy, target.processors, blocks_per_split=16)
    partials = x.new_empty((splits, groups, tasks, channels, columns), dtype=torch.float32)
    tap_products[(programs * tasks * groups, splits)](
        x, partials, geometry.images, channels,
        *ones, *geometry.spatial, *kernel, *ones, *geometry.outputs, *ones, *geometry.dilation,
        *zeros, *geometry.padding, *x.stride()[:2], *zeros, *x.stride()[2:],
        tasks, partials.stride(0),
        WIDEN=target.widen,
        PRECISION=target.product(x.dtype),
        BLOCK_POSITIONS=config.block_positions,
        BLOCK_ROWS=config.block_rows,
        BLOCK_COLUMNS=config.block_columns,
        num_warps=config.warps,
        num_stages=config.stages,
        enable_fp_fusion=True,
    )  # fmt: skip
    taps = (kernel[0], kernel[0], kernel[1], kernel[1], kernel[2])
    return partials.sum(0).view(groups, *taps, channels, kernel[2], channels)


def config_of(family: Family, x: Tensor, channels: int) -> Config:
    """Choose the block shape and the launch options for `x` on a device."""
    strides = (stride for axis, stride in enumerate(x.stride()) if axis != 1)
    is_wide = x.stride(1) == 1 and channels % 16 == 0 and not any(s % 16 for s in strides)
    if family == "interpreter":
        configs = INTERPRETED
    elif family == "gfx942" or not is_wide:
        configs = GATHER
    else:
        configs = COPIES if channels < MANY_CHANNELS else LARGE_COPIES
    return configs[x.element_size()]


def channels_last(x: Tensor) -> Tensor:
    """Lay channels side by side: taps are then whole copies, at any shift along the other axes."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def slide_(blocks: Tensor) -> None:
    """Turn what each slide changes into blocks, `[groups, p1, q1, p2, q2, p3, C, q3, C]`.

    The last axis slides in every block, the middle one where p3 = 0, the first one where moreover
    min(p2, q2) = 0: as `tap_products` chooses.
    """
    k1, k2, k3 = blocks.shape[1:6:2]
    unslid = [(0, q2) for q2 in range(k2)] + [(p2, 0) for p2 in range(1, k2)]
    # In this order: a slide starts from blocks that the slides along the axes before have finished.
    for tap in range(1, k1):
        for p2, q2 in unslid:
            blocks[:, tap, 1:, p2, q2, 0].add_(blocks[:, tap - 1, :-1, p2, q2, 0])
    for tap in range(1, k2):
        blocks[:, :, :, tap, 1:, 0].add_(blocks[:, :, :, tap - 1, :-1, 0])
    for tap in range(1, k3):
        later = blocks[:, :, :, :, :, tap, :, tap:]
        later.add_(blocks[:, :, :, :, :, tap - 1, :, tap - 1 : -1])


def assemble_(out: Tensor, blocks: Tensor) -> Tensor:
    """Order the blocks as `[groups, C, taps, C, taps]`, the missing ones by symmetry."""
    groups, channels = blocks.shape[0], blocks.shape[-1]
    kernel = blocks.shape[1:6:2]
    ordered = blocks.permute(0, 6, 1, 3, 5, 8, 2, 4, 7)
    moment = out.view(groups, channels, *kernel, channels, *kernel)
    moment.copy_(ordered)
    for p3 in range(1, kernel[2]):
        upper = ordered[:, :, :, :, :p3, :, :, :, p3]  # [groups, C, p1, p2, p3', C, q1, q2]
        moment[:, :, :, :, p3, :, :, :, :p3].copy_(upper.permute(0, 5, 6, 7, 1, 2, 3, 4))
    return mirror_(out)
