"""The second moment of every channel of its own: what a normalisation's scale and shift need."""

from torch import Tensor

from ..errors import KernelValueError
from . import sum_ops
from .rows import accumulation_dtype, check_out


def channel_second_moment(x: Tensor, *, bias: bool = False, out: Tensor | None = None) -> Tensor:
    """Sum, for every channel c, the outer products of the rows `(x_ncp, 1)`.

    With `bias` the result of a channel is `[[sum x^2, sum x], [sum x, N P]]`, without it
    `[[sum x^2]]`: the local Fisher of `y_c = w_c x_c + b_c`. Sums, not means, so that those of
    several batches add up. No gradient flows through it, and autocast does not change it.

    Args:
        x: `[N, C, P]`, N samples of P numbers a channel, of dtype float16, bfloat16, float32 or
            float64, any strides, `N, P >= 0`.
        bias: whether the channels have a shift.
        out: buffer of the result's shape, dtype and device, to which the moments are ADDED.

    Returns:
        `out`, or a new tensor: `[C, 1, 1]`, or `[C, 2, 2]` with `bias`; exactly symmetric; float64
        for float64 numbers, else float32, in which the products are taken and summed.

    Raises:
        KernelTypeError: `x` is not floating, or `out` has another dtype than the result.
        KernelValueError: `x` has not 3 axes, or `out` has another shape or device.

    Reads `N C P` entries once on a GPU, twice on a CPU with `bias`; `N C P` multiply-adds, and as
    many additions with `bias`. Bitwise the same from run to run.

    Source: docs/method.md, local Fishers. Checked by tests/ops/test_channel_second_moment.py.
    """
    dtype = accumulation_dtype(x)
    if x.dim() != 3:
        raise KernelValueError(
            f"x has shape {tuple(x.shape)}; expected [N, C, P]: flatten the positions of a "
            "channel, for example with x.flatten(2), or give it one with x.unsqueeze(-1)"
        )
    size = 1 + int(bias)
    check_out(out, (x.shape[1], size, size), dtype, x)
    if out is None:
        moments: Tensor = sum_ops.channel_second_moment(x.detach(), bias)
        return moments
    sum_ops.add_channel_second_moment_(out, x.detach(), bias)
    return out
