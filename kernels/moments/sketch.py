"""The sketch of a second moment: its product with a few columns, and its trace, without itself."""

import torch
from torch import Tensor

from ..errors import KernelTypeError, KernelValueError
from ..precision import exact_products
from .rows import accumulation_dtype, check_out

TRACE = (..., -1, 0)
"""Where a sketch `[*, D + 1, l]` has the trace: first in its last row, which is 0 behind it."""


def sketch(x: Tensor, omega: Tensor, *, bias: bool = False, out: Tensor | None = None) -> Tensor:
    """Multiply the second moment of the rows of `x` by `omega`, without making it; add its trace.

    With `x~ = [x 1]` where `bias`, else `x~ = x`, the first D rows are `x~^T (x~ Omega)` and the
    last one is `(|x~|^2, 0, ..., 0)`. Sums, linear in the outer products of the rows, so sketches
    of several batches add up as second moments do. No gradient flows through it, and autocast does
    not change it.

    Args:
        x: rows `[N, K]`, or of several layers `[groups, N, K]`, of dtype float16, bfloat16, float32
            or float64, any strides, `N >= 0`.
        omega: `[D, l]`, `D = K + bias`, float64 for float64 rows, else float32, on the device of
            `x`; of `sketch_basis`, or any other.
        bias: whether every row ends in a 1.
        out: buffer of the result's shape, dtype and device, to which the sketch is ADDED.

    Returns:
        `out`, or a new tensor: `[D + 1, l]` or `[groups, D + 1, l]`, of the dtype of `omega`, in
        which the products are taken and summed.

    Raises:
        KernelTypeError: `x` is not floating, or `omega` or `out` has another dtype than the result.
        KernelValueError: `x` has fewer than 2 or more than 3 axes, or `omega` or `out` has another
            shape, or `out` another device.

    `2 N D l` multiply-adds, where a second moment takes `N D^2 / 2`. No kernel of its own: these
    are two products of PyTorch's.

    Source: docs/method.md, sketches. Checked by tests/ops/test_sketch.py.
    """
    dtype = accumulation_dtype(x)
    if x.dim() not in (2, 3):
        raise KernelValueError(
            f"x has shape {tuple(x.shape)}; expected rows [N, K] or [groups, N, K]: flatten the "
            "leading axes, for example with x.flatten(0, -2)"
        )
    size = x.shape[-1] + int(bias)
    check_omega(omega, size, dtype)
    out = new_or_checked(out, (*x.shape[:-2], size + 1, omega.shape[1]), dtype, x)
    rows = x.detach().to(dtype)
    width = rows.shape[-1]
    with exact_products(x.device):
        seen = rows @ omega[:width]
        # Before the rows meet `x~^T Omega` again: the bias is in it for all of them.
        if bias:
            seen += omega[-1]
            out[..., width, :] += seen.sum(-2)
        out[..., :width, :] += rows.mT @ seen
    # Summed, not estimated from the columns: the residual of a root is what is left of the trace,
    # so that an error of it would stand in the tail (decision 24).
    out[TRACE] += rows.square().sum((-2, -1)) + (rows.shape[-2] if bias else 0)
    return out


def check_omega(omega: Tensor, size: int, dtype: torch.dtype) -> None:
    """Reject columns that a moment of `[size, size]`, summed in `dtype`, cannot be multiplied by.

    Raises:
        KernelTypeError: another dtype.
        KernelValueError: another shape.
    """
    if omega.dim() != 2 or omega.shape[0] != size:
        raise KernelValueError(
            f"omega has shape {tuple(omega.shape)}; expected [{size}, l], a row for each entry of "
            "a row of x and one for its bias"
        )
    if omega.dtype != dtype:
        raise KernelTypeError(
            f"omega has dtype {omega.dtype}; expected {dtype}, in which the products are summed"
        )


def new_or_checked(
    out: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, like: Tensor
) -> Tensor:
    """Return zeros to add a sketch to, or the buffer that was given, which must fit."""
    if out is None:
        return torch.zeros(shape, dtype=dtype, device=like.device)
    check_out(out, shape, dtype, like)
    return out
