"""The root of the inverse of a diagonal matrix: one number for each entry."""

import torch
from torch import Tensor

from ..errors import KernelTypeError, KernelValueError
from .cholesky_inverse import ROOT_DTYPES
from .factors import NOT_FINITE, first_mark


def diagonal_root_ex(diagonals: Tensor) -> tuple[Tensor, Tensor]:
    """Return `d^(-1/2)` for damped diagonals `d`, and what is wrong with each, without waiting.

    Args:
        diagonals: `[*, D]`, float32 or float64, any strides.

    Returns:
        The roots `[*, D]` and `info`, int32 `[*]`: 0 where the root holds; k where the k-th entry
        is not positive, counted from 1, -1 where an entry is not finite. The root is NaN wherever
        `info` is not 0.

    Raises:
        KernelTypeError: the dtype is neither float32 nor float64.
        KernelValueError: there is no axis.

    Reads and writes D entries. No kernel of its own: a pointwise call is one already.

    Source: docs/method.md, local Fishers. Checked by tests/ops/test_diagonal_root.py.
    """
    if diagonals.dtype not in ROOT_DTYPES:
        raise KernelTypeError(
            f"the diagonals have dtype {diagonals.dtype}; expected float32 or float64: accumulate "
            "and damp in float32, half precision is no basis for a root"
        )
    if diagonals.dim() < 1:
        raise KernelValueError("the diagonals have shape (); expected [*, D]")
    entries = diagonals.detach()
    info = first_mark(~(entries > 0))
    info = torch.where(entries.isfinite().all(-1), info, NOT_FINITE).int()
    return entries.rsqrt().masked_fill(info[..., None] != 0, torch.nan), info
