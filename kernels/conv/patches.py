"""The patch algorithm: write the patches out and multiply; for any convolution."""

from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional

from ..moments.rows import complete_, upper_product_
from .geometry import ConvGeometry, image_blocks


def patch_moment_(out: Tensor, x: Tensor, geometry: ConvGeometry) -> Tensor:
    """Overwrite `out` with the sums of outer products of patches, by writing the patches out.

    Args:
        out: `[groups, D, D]` in the dtype to compute in; D runs over channel, then tap.
        x: `[N, C, *spatial]`.
        geometry: of a convolution over `x`.

    Returns:
        `out`, exactly symmetric.

    Checked by tests/ops/test_conv_second_moment.py.
    """
    group_bytes = geometry.width * out.element_size()
    image_bytes = geometry.groups * group_bytes * geometry.positions
    blocks = image_blocks(x, image_bytes, geometry.groups * group_bytes * geometry.width)
    for i, block in enumerate(blocks):
        upper_product_(out, _patches(block.to(out.dtype), geometry).mT, add=i > 0)
    return complete_(out)


def patch_sums(x: Tensor, geometry: ConvGeometry, dtype: torch.dtype) -> Tensor:
    """Sum the patches of `x`: `[groups, D]`. A tap sees the same positions of every image."""
    sums = _padded(x.sum(0, dtype=dtype), geometry)
    for taps, stride, dilation, outputs in zip(
        geometry.kernel, geometry.stride, geometry.dilation, geometry.outputs, strict=True
    ):
        # Axis 1 is the next spatial one each time: the sum takes it away, and its taps come last.
        reach = (outputs - 1) * stride + 1
        seen = [sums.narrow(1, tap * dilation, reach)[:, ::stride].sum(1) for tap in range(taps)]
        sums = torch.stack(seen, dim=-1)
    return sums.reshape(geometry.groups, geometry.width)


def _patches(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """Copy the patches of `x` to `[groups, D, N * positions]`."""
    windows = _padded(x, geometry)
    axes = len(geometry.kernel)
    for axis in range(axes):
        dilation = geometry.dilation[axis]
        extent = dilation * (geometry.kernel[axis] - 1) + 1
        windows = windows.unfold(2 + axis, extent, geometry.stride[axis])[..., ::dilation]
    channel_tap_position = (1, *range(2 + axes, 2 + 2 * axes), 0, *range(2, 2 + axes))
    return windows.permute(channel_tap_position).reshape(
        geometry.groups, geometry.width, len(x) * geometry.positions
    )


def _padded(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """Surround the spatial axes, which are the last ones, with zeros."""
    # `pad` begins with the last axis.
    margins = chain.from_iterable((margin, margin) for margin in reversed(geometry.padding))
    return functional.pad(x, tuple(margins))
