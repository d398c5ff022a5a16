"""The second moment of rows: the statistic every local Fisher of a linear layer is made of."""

from torch import Tensor

from ..errors import KernelValueError
from . import ops
from .rows import accumulation_dtype, check_out


def second_moment(x: Tensor, *, bias: bool = False, out: Tensor | None = None) -> Tensor:
    """Sum the outer products of the rows of `x`, with a column of ones last when `bias`.

    With `x~ = [x 1]` the result is `x~^T x~ = [[x^T x, s], [s^T, N]]`, `s` the sum of the rows: the
    ones need not exist in memory. Sums, not means, so that moments of several batches add up.
    The result is a statistic: no gradient flows through it, and autocast does not change it.

    Args:
        x: rows `[N, D]` of dtype float16, bfloat16, float32 or float64, any strides, `N >= 0`.
        bias: whether every row ends in a 1.
        out: buffer of the result's shape, dtype and device, to which the moment is ADDED.

    Returns:
        `out`, or a new tensor: `[D, D]`, `[D + 1, D + 1]` with `bias`; exactly symmetric; float64
        for float64 rows, else float32, in which the products are taken and summed.

    Raises:
        KernelTypeError: `x` is not floating, or `out` has another dtype than the result.
        KernelValueError: `x` is not a matrix, or `out` has another shape or device.

    Reads `N D` entries and writes `D^2` at least; `N D^2` multiply-adds, of which the kernel and
    the CPU path take the half on and above the diagonal. Bitwise the same from run to run.

    Source: docs/method.md, local Fishers. Checked by tests/ops/test_second_moment.py.
    """
    dtype = accumulation_dtype(x)
    if x.dim() != 2:
        raise KernelValueError(
            f"x has shape {tuple(x.shape)}; expected rows [N, D]: flatten the leading axes, "
            "for example with x.flatten(0, -2)"
        )
    size = x.shape[1] + int(bias)
    check_out(out, (size, size), dtype, x)
    if out is None:
        moment: Tensor = ops.second_moment(x.detach(), bias)
        return moment
    ops.add_second_moment_(out, x.detach(), bias)
    return out
