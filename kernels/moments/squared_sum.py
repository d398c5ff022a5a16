"""The sum of the squares of rows, column by column: the diagonal of a second moment."""

from torch import Tensor

from ..errors import KernelValueError
from . import sum_ops
from .rows import accumulation_dtype, check_out


def squared_sum(x: Tensor, *, bias: bool = False, out: Tensor | None = None) -> Tensor:
    """Sum the squares of the rows of `x`, with a column of ones last when `bias`.

    `s_d = sum_n x_nd^2`, and `s_D = N` for the ones: the diagonal of `second_moment`, without the
    rest of it. Sums, not means, so that those of several batches add up. No gradient flows through
    it, and autocast does not change it.

    Args:
        x: rows `[N, D]`, or of several layers `[groups, N, D]`, of dtype float16, bfloat16, float32
            or float64, any strides, `N >= 0`.
        bias: whether every row ends in a 1.
        out: buffer of the result's shape, dtype and device, to which the sum is ADDED.

    Returns:
        `out`, or a new tensor: `[D + bias]` or `[groups, D + bias]`; float64 for float64 rows, else
        float32, in which the squares are taken and summed.

    Raises:
        KernelTypeError: `x` is not floating, or `out` has another dtype than the result.
        KernelValueError: `x` has fewer than 2 or more than 3 axes, or `out` has another shape or
            device.

    Reads `N D` entries once; `N D` multiply-adds. Bitwise the same from run to run.

    Source: docs/method.md, local Fishers. Checked by tests/ops/test_squared_sum.py.
    """
    dtype = accumulation_dtype(x)
    if x.dim() not in (2, 3):
        raise KernelValueError(
            f"x has shape {tuple(x.shape)}; expected rows [N, D] or [groups, N, D]: flatten the "
            "leading axes, for example with x.flatten(0, -2)"
        )
    check_out(out, (*x.shape[:-2], x.shape[-1] + int(bias)), dtype, x)
    if out is None:
        squares: Tensor = sum_ops.squared_sum(x.detach(), bias)
        return squares
    sum_ops.add_squared_sum_(out, x.detach(), bias)
    return out
