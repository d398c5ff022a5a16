"""One second moment for each output unit: the statistic of the method's unit-wise local Fishers."""

from torch import Tensor

from ..errors import KernelTypeError, KernelValueError
from . import ops
from .rows import accumulation_dtype, check_out


def unit_second_moment(
    x: Tensor, weights: Tensor, *, bias: bool = False, out: Tensor | None = None
) -> Tensor:
    """Sum the weighted outer products of the rows of `x`, one sum for each column of `weights`.

    `G_j = sum_n nu_nj x~_n x~_n^T`, `nu_nj = nu(a_nj)` the relative Fisher information of unit j at
    its activation: 1 for a linear unit, `1 - tanh(a)^2`, `s (1 - s)`, `sigmoid(a)^2` for ReLU. The
    weighted rows `[O, N, D]` are never all in memory. No gradient flows, autocast changes nothing.

    Args:
        x: rows `[N, D]` of dtype float16, bfloat16, float32 or float64, any strides, `N >= 0`.
        weights: `nu` `[N, O]`, floating, on the device of `x`; any sign.
        bias: whether every row ends in a 1.
        out: buffer of the result's shape, dtype and device, to which the moments are ADDED.

    Returns:
        `out` or a new tensor: `[O, D, D]`, `[O, D + 1, D + 1]` with `bias`; exactly symmetric;
        float64 for float64 rows, else float32, in which products are summed. On a GPU a weighted
        bfloat16 row keeps 16 bits of its mantissa.

    Raises:
        KernelTypeError: `x` or `weights` is not floating, or `out` has another dtype.
        KernelValueError: a shape or a device does not fit.

    Reads `N (D + O)` entries once for each tile and writes `O D^2`; `N O D^2 / 2` multiply-adds.

    Source: Sun and Nielsen 2017, arXiv 1606.06069. Checked by tests/ops/test_unit_second_moment.py.
    """
    dtype = accumulation_dtype(x)
    if not weights.is_floating_point():
        raise KernelTypeError(
            f"weights has dtype {weights.dtype}; expected a floating one: convert it first"
        )
    if x.dim() != 2 or weights.dim() != 2 or len(x) != len(weights):
        raise KernelValueError(
            f"x has shape {tuple(x.shape)} and weights {tuple(weights.shape)}; expected rows "
            "[N, D] and [N, O]: flatten the leading axes of both, for example with x.flatten(0, -2)"
        )
    if x.device != weights.device:
        raise KernelValueError(
            f"weights is on {weights.device}, x is on {x.device}; expected one device: move one"
        )
    size = x.shape[1] + int(bias)
    check_out(out, (weights.shape[1], size, size), dtype, x)
    if out is None:
        moments: Tensor = ops.unit_second_moment(x.detach(), weights.detach(), bias)
        return moments
    ops.add_unit_second_moment_(out, x.detach(), weights.detach(), bias)
    return out
