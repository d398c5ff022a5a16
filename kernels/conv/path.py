"""Which algorithm a convolution's second moment takes, and why: the one place that decides."""

from collections.abc import Sequence
from math import prod
from typing import Literal

from .geometry import ConvGeometry, conv_geometry

ConvPath = Literal["taps", "patches"]

# Where the tap path wins, measured on one AVX-512 thread in float32: 1 to 64 images, 1 to 512
# channels, 2 to 11 taps, one to three axes (`make bench-kernels` runs a part of it).
TAPS_MIN_CHANNELS = 3
TAPS_MIN_ROWS_PER_COLUMN = 0.5
TAPS_MIN_MULTIPLICATIONS_PER_CALL = 5e7


def conv_path(
    shape: Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> ConvPath:
    """Name the algorithm `conv_second_moment` takes for an input of `shape`.

    Either one gives the same moment up to rounding; `faster_path` says what decides.

    Args:
        shape: `[N, C, *spatial]` of the input.
        kernel_size: taps per spatial axis, at least 1.
        stride: positions from one patch to the next, at least 1.
        padding: zeros on either side, at least 0.
        dilation: positions from one tap to the next, at least 1.
        groups: divisor of C.

    Returns:
        `"taps"`, one product of the channels for each offset between two taps (conv_taps.py), or
        `"patches"`, which are written out, a block of images at a time (conv_patches.py).

    Raises:
        KernelTypeError: a size is not an int.
        KernelValueError: the convolution is impossible.

    Checked by tests/ops/test_conv_second_moment.py.
    """
    return faster_path(conv_geometry(shape, kernel_size, stride, padding, dilation, groups))


def faster_path(geometry: ConvGeometry) -> ConvPath:
    """Choose `"taps"` for a kernel of several taps with stride 1, unless patches cost less.

    They do with one or two channels per group, where both paths only move memory; with fewer rows
    than half the width `D`, where the `D^2` entries cost more than the products; and where the
    products are too small for the many calls, one for each tap of all axes but the last.
    """
    rows = geometry.images * geometry.positions
    calls = prod(geometry.kernel[:-1])
    taps = (
        set(geometry.stride) == {1}
        and prod(geometry.kernel) > 1
        and geometry.channels >= TAPS_MIN_CHANNELS
        and rows >= TAPS_MIN_ROWS_PER_COLUMN * geometry.width
        and rows * geometry.width**2 >= TAPS_MIN_MULTIPLICATIONS_PER_CALL * calls
    )
    return "taps" if taps else "patches"
