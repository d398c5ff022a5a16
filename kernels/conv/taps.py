"""The tap-offset algorithm: the patch second moment of a stride-1 convolution without patches.

Along one axis, with taps p and q, dilation d and L output positions, the block of the moment for
(p, q) is

    G[p, q] = sum over t in [0, L) of a[t + d p] b[t + d q]^T.

Only `G[0, q]` and `G[p, 0]` are computed, one product for each offset `q - p`. The others follow by
sliding the window one tap onwards, which swaps e = min(d, L) positions at its two ends:

    G[p+1, q+1] = G[p, q] + sum over t in [L-e, L) of a[t + d (p+1)] b[t + d (q+1)]^T
                          - sum over t in [0, e)   of a[t + d p]     b[t + d q]^T.

Further axes: every product over one axis is itself a cross moment over the remaining ones, and so
is the sum over the ends, whose taps along the finished axis have become channels. For a 3x3 kernel
that is 13 products of the channels over all positions, where the patches need 45 (by symmetry).

A grid is one group of channels laid out as `[last axis, N, other axes, channels]`, so that windows
along the last axis are rows of channels without a copy.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ..moments.rows import mirror_
from .geometry import ConvGeometry, image_blocks


class Axis(NamedTuple):
    """Describe one spatial axis: where it lies in the grid, and the kernel along it."""

    dim: int
    taps: int
    dilation: int
    outputs: int


def tap_moment_(out: Tensor, x: Tensor, geometry: ConvGeometry) -> Tensor:
    """Overwrite `out` with the sums of outer products of patches, by offsets of taps.

    Args:
        out: `[groups, D, D]` in the dtype to compute in; D runs over channel, then tap.
        x: `[N, C, *spatial]`, finite: what leaves a window is subtracted.
        geometry: of a convolution over `x` with stride 1.

    Returns:
        `out`, exactly symmetric.

    Source: docs/method.md, cost. Checked by tests/ops/test_conv_second_moment.py.
    """
    tap_channel = (prod(geometry.kernel), geometry.channels)
    for moment, channels in zip(out, torch.split(x, geometry.channels, dim=1), strict=True):
        upper = _upper_moment(channels, geometry, out.dtype)
        blocks = mirror_(upper.unsqueeze(0)).view(*tap_channel, *tap_channel)
        channel_tap = blocks.transpose(0, 1).transpose(2, 3)
        moment.view(channel_tap.shape).copy_(channel_tap)
    return out


def _upper_moment(x: Tensor, geometry: ConvGeometry, dtype: torch.dtype) -> Tensor:
    """Sum over the images of one group, `[D, D]`, D running over tap, then channel.

    Only the upper triangle means anything.
    """
    axes = [
        Axis(dim, taps, dilation, outputs)
        for dim, taps, dilation, outputs in zip(
            _dims(geometry), geometry.kernel, geometry.dilation, geometry.outputs, strict=True
        )
    ]
    image_bytes = geometry.channels * prod(geometry.padded) * dtype.itemsize
    first, *others = image_blocks(x, image_bytes, geometry.width**2 * dtype.itemsize)
    grid = _grid(first, geometry, dtype)
    moment = _cross_moment(grid, grid, axes, upper=True)
    for block in others:
        grid = _grid(block, geometry, dtype)
        moment += _cross_moment(grid, grid, axes, upper=True)
    return moment


def _dims(geometry: ConvGeometry) -> tuple[int, ...]:
    """Locate the spatial axes in a grid: the last one first, the others behind the images."""
    return (*range(2, 1 + len(geometry.kernel)), 0)


def _grid(x: Tensor, geometry: ConvGeometry, dtype: torch.dtype) -> Tensor:
    """Lay one group of channels `[N, channels, *spatial]` out as a zero-padded grid."""
    *others, last = geometry.padded
    grid = x.new_zeros((last, len(x), *others, geometry.channels), dtype=dtype)
    inside = grid
    for dim, margin, size in zip(_dims(geometry), geometry.padding, geometry.spatial, strict=True):
        inside = inside.narrow(dim, margin, size)
    inside.copy_(x.permute(-1, 0, *range(2, x.dim() - 1), 1))
    return grid


def _cross_moment(a: Tensor, b: Tensor, axes: Sequence[Axis], *, upper: bool = False) -> Tensor:
    """Sum the outer products of the patches of `a` and those of `b`.

    Args:
        a: grid.
        b: grid of the same sizes, except for the channels.
        axes: the axes along which patches extend; along the others a patch is one position.
        upper: fill the upper triangle only (`a` is `b`); the rest of the result is arbitrary.

    Returns:
        `[taps * channels of a, taps * channels of b]`, the taps row by row.
    """
    if not axes:
        return a.flatten(0, -2).mT @ b.flatten(0, -2)
    axis, *further = axes
    rows, columns = (prod(axis.taps for axis in further) * grid.shape[-1] for grid in (a, b))
    blocks = a.new_empty(axis.taps, rows, axis.taps, columns)
    _offset_products_(blocks[0].transpose(0, 1), a, b, axes, upper=upper)
    if axis.taps > 1:
        # With `upper` these are mirror images of the first row of blocks, and nobody reads them.
        if not upper:
            later = a.narrow(axis.dim, axis.dilation, a.shape[axis.dim] - axis.dilation)
            _offset_products_(blocks[1:, :, 0].mT, b, later, axes)
        _slide_(blocks, _change(a, b, axes), upper=upper)
    return blocks.view(axis.taps * rows, axis.taps * columns)


def _offset_products_(
    out: Tensor, a: Tensor, b: Tensor, axes: Sequence[Axis], *, upper: bool = False
) -> None:
    """Multiply what tap 0 of the first of `axes` sees of `a` by what its taps see of `b`.

    Args:
        out: `[taps, rows, columns]`, overwritten: as many taps as it has entries.
        a: grid.
        b: grid.
        axes: the axis of the taps, then those over which each product is a cross moment.
        upper: fill the upper triangle of the first product only.
    """
    axis, *further = axes
    origin = a.narrow(axis.dim, 0, axis.outputs)
    if not further:
        rows = origin.flatten(0, -2).mT.expand(len(out), -1, -1)
        seen = b.unfold(0, axis.outputs, axis.dilation)[: len(out)].movedim(-1, 1)
        out.copy_(torch.bmm(rows, seen.flatten(1, -2)))
        return
    # Once for all taps: windows along the last axis, dim 0, are then views, and no product copies
    # its own.
    origin = origin.contiguous()
    for tap, product in enumerate(out):
        seen = b.narrow(axis.dim, tap * axis.dilation, axis.outputs).contiguous()
        product.copy_(_cross_moment(origin, seen, further, upper=upper and tap == 0))


def _change(a: Tensor, b: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Return what each slide along the first of `axes` adds to a block.

    Returns:
        `[slides, further taps, channels of a, slides, further taps, channels of b]`.
    """
    axis, *further = axes
    # The sign is on one factor: on both it would cancel, and what leaves would be added.
    change = _cross_moment(_ends(a, axis), _ends(b, axis, negate_leaving=True), further)
    slides, further_taps = axis.taps - 1, prod(axis.taps for axis in further)
    rows, columns = (further_taps, slides, a.shape[-1]), (further_taps, slides, b.shape[-1])
    return change.view(*rows, *columns).transpose(0, 1).transpose(3, 4)


def _ends(grid: Tensor, axis: Axis, *, negate_leaving: bool = False) -> Tensor:
    """Cut `axis` down to the positions that leave a window, then those that enter it.

    Returns:
        A grid with `(taps - 1) * channels` channels, those of one slide after the other's.
    """
    reach = min(axis.dilation, axis.outputs)
    span = axis.dilation * (axis.taps - 2) + 1
    slides = grid.unfold(axis.dim, span, 1)[..., :: axis.dilation].mT
    leaving = slides.narrow(axis.dim, 0, reach)
    entering = slides.narrow(axis.dim, axis.dilation + axis.outputs - reach, reach)
    return torch.cat([-leaving if negate_leaving else leaving, entering], axis.dim).flatten(-2)


def _slide_(blocks: Tensor, change: Tensor, *, upper: bool) -> None:
    """Fill `blocks` `[taps, rows, taps, columns]` from its first row and column of blocks."""
    taps = len(blocks)
    moments = blocks.view(taps, *change.shape[1:3], taps, *change.shape[4:])
    for tap in range(1, taps):
        first = tap if upper else 1
        before = (slice(None), slice(None), slice(first - 1, taps - 1))
        later = moments[tap, :, :, first:]
        torch.add(moments[tap - 1][before], change[tap - 1][before], out=later)
