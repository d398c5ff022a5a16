"""Inverse Cholesky factors of damped matrices: the cheapest roots of their inverses."""

import torch
from torch import Tensor

from ..errors import KernelTypeError, KernelValueError, NotPositiveDefiniteError
from . import ops
from .factors import NOT_FINITE, NOT_SYMMETRIC

# Half precision is no basis for a root.
ROOT_DTYPES = (torch.float32, torch.float64)


def cholesky_inverse(
    matrices: Tensor, damping: float | Tensor = 0.0, *, bias: bool = False
) -> Tensor:
    """Return `R = L^-1`, `L L^T = G + damping I`, for each of the symmetric matrices `G`.

    `R^T R = (G + damping I)^-1`, so `R` is a Fisher layer. With `bias` the last row and column are
    eliminated first: `R = [[C^-1, -C^-1 m], [0, 1 / g]]` with `C` lower triangular, which centres
    and whitens; without, `R` is lower triangular. Many small matrices are one launch on a GPU.

    Args:
        matrices: `[*, D, D]`, float32 or float64, any strides.
        damping: added to every diagonal, at least 0; a number or one for each matrix `[*]`.
        bias: whether the last coordinate is the bias, to be eliminated first.

    Returns:
        A new tensor of the shape and dtype of `matrices`.

    Raises:
        KernelTypeError: the dtype is neither float32 nor float64; half precision is no basis for a
            root.
        KernelValueError: the matrices are not square, symmetric and finite, or `damping` does not
            fit.
        NotPositiveDefiniteError: a pivot is not positive; names the matrix and the pivot.

    It waits for the device to look at the pivots; `cholesky_inverse_ex` does not. Reads and writes
    `D^2` entries a matrix; `D^3 / 2` multiply-adds, `D^3` in the kernel, which updates whole tiles.

    Source: docs/method.md, roots. Checked by tests/ops/test_cholesky_inverse.py.
    """
    inverse, info = cholesky_inverse_ex(matrices, damping, bias=bias)
    if bool((info != 0).any()):
        raise _error(matrices, info, bias)
    return inverse


def cholesky_inverse_ex(
    matrices: Tensor, damping: float | Tensor = 0.0, *, bias: bool = False
) -> tuple[Tensor, Tensor]:
    """Return what `cholesky_inverse` does, and for each matrix what is wrong, without waiting.

    Args:
        matrices: as `cholesky_inverse`.
        damping: as `cholesky_inverse`.
        bias: as `cholesky_inverse`.

    Returns:
        `R` `[*, D, D]` and `info`, int32 `[*]`: 0 where `R` holds; k where the k-th pivot in the
        order of elimination is not positive, -1 where an entry is not finite, -2 where the matrix
        is not symmetric. `R` is NaN wherever `info` is not 0.

    Raises:
        KernelTypeError: as `cholesky_inverse`.
        KernelValueError: the matrices are not square, or `damping` does not fit.

    Source: docs/method.md, roots. Checked by tests/ops/test_cholesky_inverse.py.
    """
    check_square(matrices)
    lead = matrices.shape[:-2]
    if isinstance(damping, Tensor):
        if damping.device != matrices.device or not _expandable(damping.shape, lead):
            raise KernelValueError(
                f"damping has shape {tuple(damping.shape)} on {damping.device}; expected a number "
                f"or {tuple(lead)} on {matrices.device}, one for each matrix"
            )
        shift = damping.detach().to(matrices.dtype).expand(lead)
    else:
        # Not `damping < 0`, which a NaN would pass.
        if not damping >= 0:
            raise KernelValueError(
                f"damping is {damping}; expected at least 0: a negative one makes matrices singular"
            )
        shift = matrices.new_full(lead, damping)
    batch = matrices.detach().reshape(lead.numel(), *matrices.shape[-2:])
    # One damping for all is expanded, with a stride of 0: the kernel reads one for each matrix.
    inverse, info = ops.cholesky_inverse(batch, shift.reshape(-1).contiguous(), bias)
    return inverse.view(matrices.shape), info.view(lead)


def check_square(matrices: Tensor) -> None:
    """Reject what is not a batch of float32 or float64 square matrices.

    Raises:
        KernelTypeError: another dtype.
        KernelValueError: another shape.
    """
    if matrices.dtype not in ROOT_DTYPES:
        raise KernelTypeError(
            f"the matrices have dtype {matrices.dtype}; expected float32 or float64: accumulate "
            "and damp in float32, half precision is no basis for a root"
        )
    if matrices.dim() < 2 or matrices.shape[-1] != matrices.shape[-2]:
        raise KernelValueError(
            f"the matrices have shape {tuple(matrices.shape)}; expected square ones [*, D, D]"
        )


def _expandable(shape: torch.Size, lead: torch.Size) -> bool:
    """Whether one damping, or one for each matrix, was given."""
    return len(shape) <= len(lead) and all(
        size in (1, wanted) for size, wanted in zip(shape[::-1], lead[::-1], strict=False)
    )


def _error(matrices: Tensor, info: Tensor, bias: bool) -> KernelValueError:
    """Describe the first matrix of the batch that has no root."""
    place = tuple(int(index) for index in (info != 0).nonzero()[0])
    name = f"matrix {list(place)} of the batch" if place else "the matrix"
    code = int(info[place])
    if code == NOT_FINITE:
        return KernelValueError(
            f"{name} has entries that are not finite; expected finite ones: look for an overflow "
            "in what it was summed from"
        )
    if code == NOT_SYMMETRIC:
        return KernelValueError(
            f"{name} is not symmetric; expected G = G^T up to rounding: symmetrise it with "
            "(G + G.mT) / 2 if that is what is meant"
        )
    width = matrices.shape[-1]
    # The first pivot is that of the bias, which is the last row.
    row = (code - 2) % width if bias else code - 1
    return NotPositiveDefiniteError(
        f"{name} is not positive definite: pivot {code} of {width}, that of row {row}, is not a "
        "positive number; expected positive pivots: raise the damping, or compute in float64"
    )
