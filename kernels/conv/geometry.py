"""The checked shape of a convolution: one number per spatial axis, whatever the caller wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..errors import KernelTypeError, KernelValueError

SPATIAL_AXES = (1, 2, 3)

# Bytes an algorithm lays out at a time. On a CPU blocks that stay near the cache, and below what
# malloc hands back to the system, are up to 1.4 times faster than one block (2 to 32 MiB tie within
# 10 %); elsewhere the number only bounds the memory.
CPU_BLOCK_BYTES = 4 * 2**20
DEVICE_BLOCK_BYTES = 256 * 2**20


@dataclass(frozen=True)
class ConvGeometry:
    """Hold what a convolution does to `[N, C, *spatial]`, one entry per spatial axis.

    Attributes:
        images: N.
        channels: channels of one group, `C / groups`.
        groups: number of groups.
        spatial: input sizes, unpadded.
        kernel: number of taps.
        stride: step between output positions.
        padding: zeros on either side.
        dilation: step between taps.
        outputs: output sizes.
    """

    images: int
    channels: int
    groups: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def width(self) -> int:
        """Count the entries of one patch of one group."""
        return self.channels * prod(self.kernel)

    @property
    def is_pointwise(self) -> bool:
        """Whether a patch is one position, and none lies in the padding."""
        return prod(self.kernel) == 1 and not any(self.padding)

    @property
    def padded(self) -> tuple[int, ...]:
        """Measure the input with its zeros."""
        return tuple(
            size + 2 * margin for size, margin in zip(self.spatial, self.padding, strict=True)
        )

    @property
    def positions(self) -> int:
        """Count the patches of one image."""
        return prod(self.outputs)

    def moment_shape(self, bias: bool) -> tuple[int, ...]:
        """Give the shape of the moment, with one entry more for a `bias`."""
        size = self.width + int(bias)
        return (size, size) if self.groups == 1 else (self.groups, size, size)


def conv_geometry(
    shape: Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> ConvGeometry:
    """Check a convolution over an input of `shape` `[N, C, *spatial]` and fill in its sizes.

    Raises:
        KernelTypeError: a size is not an int.
        KernelValueError: the rank, a size, the groups or the resulting output size is impossible.

    Checked by tests/ops/test_conv_errors.py.
    """
    axes = len(shape) - 2
    if axes not in SPATIAL_AXES:
        raise KernelValueError(
            f"x has shape {tuple(shape)}; expected [N, C, *spatial] with 1, 2 or 3 spatial axes: "
            "add the batch axis with x.unsqueeze(0) if it is missing"
        )
    images, channels, *spatial = shape
    _per_axis("groups", groups, 1, minimum=1)
    if channels % groups:
        raise KernelValueError(
            f"x has {channels} channels and groups is {groups}; expected a divisor of the "
            "channels: pass the groups of the convolution that reads x"
        )
    kernel = _per_axis("kernel_size", kernel_size, axes, minimum=1)
    step = _per_axis("stride", stride, axes, minimum=1)
    margin = _per_axis("padding", padding, axes, minimum=0)
    spacing = _per_axis("dilation", dilation, axes, minimum=1)
    outputs = tuple(map(_output_size, spatial, kernel, step, margin, spacing))
    return ConvGeometry(
        images, channels // groups, groups, tuple(spatial), kernel, step, margin, spacing, outputs
    )


def image_blocks(x: Tensor, image_bytes: int, moment_bytes: int) -> tuple[Tensor, ...]:
    """Split the images of `x` so that what an algorithm lays out stays small.

    Args:
        x: `[N, ...]`.
        image_bytes: what one image takes when laid out.
        moment_bytes: what is added to once per block: blocks are not cut smaller than that.

    Returns:
        At least one block, empty if `x` is.
    """
    limit = CPU_BLOCK_BYTES if x.device.type == "cpu" else DEVICE_BLOCK_BYTES
    images = max(1, max(limit, moment_bytes) // max(1, image_bytes))
    return torch.split(x, images)


def _per_axis(name: str, value: int | Sequence[int], axes: int, *, minimum: int) -> tuple[int, ...]:
    """Repeat one number for every spatial axis, or check the numbers given."""
    numbers = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    expected = f"expected an int, or {axes} of them, one per axis, each at least {minimum}"
    if not all(isinstance(number, int) for number in numbers):
        raise KernelTypeError(f"{name} is {value!r}; {expected}: write the numbers out")
    if len(numbers) != axes or min(numbers) < minimum:
        raise KernelValueError(
            f"{name} is {value!r}; {expected}: pass that of the convolution that reads x"
        )
    return numbers


def _output_size(size: int, taps: int, stride: int, padding: int, dilation: int) -> int:
    """Count the positions of the kernel along one axis."""
    extent = dilation * (taps - 1) + 1
    padded = size + 2 * padding
    if extent > padded:
        raise KernelValueError(
            f"the kernel spans {extent} ({taps} taps, dilation {dilation}) but the padded input is "
            f"{padded} ({size} and padding {padding}); expected at least one output position: "
            "enlarge the padding or the input"
        )
    return (padded - extent) // stride + 1
