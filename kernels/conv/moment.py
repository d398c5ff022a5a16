"""The patch moment on the faster algorithm, and whether a Triton kernel takes its place."""

from torch import Tensor

from ..dispatch import Choice, choose
from ..moments.rows import ACCUMULATION_DTYPE, append_bias_
from ..precision import exact_products
from .geometry import ConvGeometry
from .patches import patch_moment_, patch_sums
from .path import TAPS_MIN_CHANNELS, faster_path
from .taps import tap_moment_

ALGORITHMS = {"taps": tap_moment_, "patches": patch_moment_}


def choose_conv(x: Tensor, geometry: ConvGeometry) -> Choice:
    """Choose the path for `x` `[N, C, *spatial]`; the kernel is for stride 1 and 32-bit offsets.

    Where a patch is one position, the moment is that of rows, whose kernel takes any.

    Raises:
        KernelError: as `choose`.
    """
    obstacle = None if geometry.is_pointwise else _obstacle(x, geometry)
    choice = choose("conv_second_moment", x, obstacle)
    if choice.path == "triton":
        return choice
    return Choice(choice.op, choice.path, f"{choice.reason}; by {faster_path(geometry)}")


def conv_moment(x: Tensor, geometry: ConvGeometry, bias: bool) -> Tensor:
    """Compute the moment of `x` on the faster path, with one more row and column for a `bias`."""
    dtype = ACCUMULATION_DTYPE[x.dtype]
    size = geometry.width + int(bias)
    moment = x.new_empty((geometry.groups, size, size), dtype=dtype)
    with exact_products(x.device):
        patch_entries = moment[:, : geometry.width, : geometry.width]
        ALGORITHMS[faster_path(geometry)](patch_entries, x, geometry)
    return finish_conv_moment(moment, x, geometry, bias)


def pointwise_rows(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """Return the positions that one tap sees, `[groups, N * positions, C]`."""
    steps = tuple(slice(None, None, step) for step in geometry.stride)
    rows = x[:, :, *steps].movedim(1, -1).flatten(0, -2)
    grouped: Tensor = rows.unflatten(1, (geometry.groups, -1))
    return grouped.transpose(0, 1)


def finish_conv_moment(moment: Tensor, x: Tensor, geometry: ConvGeometry, bias: bool) -> Tensor:
    """Fill in the entries of the bias in `moment` `[groups, D, D]`; drop the axis of one group."""
    if bias:
        count = geometry.images * geometry.positions
        append_bias_(moment, patch_sums(x, geometry, moment.dtype), count)
    return moment.view(geometry.moment_shape(bias))


def _obstacle(x: Tensor, geometry: ConvGeometry) -> str | None:
    """Say why the kernel for several taps does not take a convolution; None where it does."""
    if set(geometry.stride) != {1}:
        return "the stride is not 1, so there are no tap offsets to share products"
    if geometry.channels < TAPS_MIN_CHANNELS:
        return f"{geometry.channels} channels in a group: patches are cheaper"
    # Twice, since a task that slides visits up to two planes for each position along its axis.
    if 2 * geometry.images * geometry.positions >= 2**31 or _image_reach(x) >= 2**31:
        return "an image, or the number of patches, is beyond 32-bit offsets"
    return None


def _image_reach(x: Tensor) -> int:
    """Count the entries between the first and the last of one image in memory."""
    return sum(
        (size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True)
    )
