"""The root of a matrix of which a sketch and the trace are known: in closed form, two skinny sides.

Legend: D rows, l columns; `Y = A Omega`, `Omega` orthonormal `[D, l]`; t the trace of A.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import KernelValueError
from ..precision import exact_products
from .factors import NOT_FINITE


class SketchRoots(NamedTuple):
    """Roots `R = s (I - B K B^T)` with `R^-1 = (I + B M B^T) / s`, all float64.

    Attributes:
        basis: B, `[*, D, l]`.
        middle: K, `[*, l, l]`, not symmetric.
        inverse_middle: M, `[*, l, l]`, lower triangular.
        tail: s, `[*]`, the gain of every direction that B leaves out.
        info: int32 `[*]`: 0 where they hold; k where the k-th pivot of `Omega^T Y` is not positive,
            or D where nothing is left for the rest of the directions; -1 where something is not
            finite. The others are NaN wherever `info` is not 0.
    """

    basis: Tensor
    middle: Tensor
    inverse_middle: Tensor
    tail: Tensor
    info: Tensor


def sketch_root_ex(
    images: Tensor, omega: Tensor, trace: Tensor, damping: Tensor, shift: Tensor
) -> SketchRoots:
    """Find the roots of `N + (damping + residual) I`, N the Nystroem approximation of A.

    With `C C^T = Omega^T Y_nu`, `Y_nu = Y + nu Omega`, the approximation is `N = B0 B0^T`,
    `B0 = Y_nu C^-T`. What it leaves out is positive semidefinite, of the trace `t - tr N`: its mean
    over the other `D - l` directions is the residual. With `rho = damping + residual`,
    `B = B0 / sqrt(rho)`, `s = rho^(-1/2)` and `L L^T = I + B^T B`

        K = (I + L^T)^-1 L^-1        M = (I + L)^-1        R^T R = (B0 B0^T + rho I)^-1.

    Args:
        images: Y, `[*, D, l]`, float32 or float64.
        omega: `[D, l]`, float64, orthonormal columns, l <= D.
        trace: t, `[*]`.
        damping: `[*]`, at least 0.
        shift: nu, `[*]`, above 0: about the rounding of Y, so that a matrix of lower rank than l
            has its factor C. A residual below it is taken for rounding.

    Returns:
        The roots. `l = D` leaves no residual, and N is A.

    Raises:
        KernelValueError: the shapes do not fit.

    About `3 D l^2 + l^3` multiply-adds for each. The same bits from run to run on one device.

    Source: docs/method.md, sketches; Tropp, Yurtsever, Udell and Cevher 2017, arXiv 1706.05736,
    for the shift. Checked by tests/ops/test_sketch_root.py.
    """
    size, columns = omega.shape
    if images.shape[-2:] != omega.shape or columns > size:
        raise KernelValueError(
            f"images have shape {tuple(images.shape)}, omega {tuple(omega.shape)}; expected "
            "[*, D, l] and [D, l] with l at most D"
        )
    numbers = torch.stack([trace, damping, shift]).double()
    wide = images.detach().double()
    finite = wide.isfinite().all(-1).all(-1) & numbers.isfinite().all(0)
    wide = torch.where(finite[..., None, None], wide, 0.0)
    trace, damping, shift = torch.where(finite, numbers, 1.0).unbind()
    with exact_products(images.device):
        half, pivots = _half(wide + shift[..., None, None] * omega, omega)
        rho = damping + _residual(half, trace, shift)
        # Rounding is all that an undamped matrix of low rank has beside its range.
        has_tail = (damping > 0) | (rho > size * shift)
        rho = torch.where(has_tail, rho, 1.0)
        basis = half * rho.rsqrt()[..., None, None]
        middle, inverse_middle, is_finite = _middles(basis)
    info = torch.where(has_tail, pivots, torch.where(pivots != 0, pivots, size))
    info = torch.where(finite & (is_finite | (info != 0)), info, NOT_FINITE).int()
    failed = info != 0
    of_matrices = failed[..., None, None]
    return SketchRoots(
        basis.masked_fill(of_matrices, torch.nan),
        middle.masked_fill(of_matrices, torch.nan),
        inverse_middle.masked_fill(of_matrices, torch.nan),
        rho.rsqrt().masked_fill(failed, torch.nan),
        info,
    )


def _half(shifted: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
    """Return `B0` `[*, D, l]` with `B0 B0^T` near A, and the pivots that failed; 0 for none."""
    inner = omega.mT @ shifted
    lower, pivots = torch.linalg.cholesky_ex((inner + inner.mT) / 2)
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    lower = torch.where((pivots != 0)[..., None, None], identity, lower)
    half: Tensor = torch.linalg.solve_triangular(lower, shifted.mT, upper=False)
    return half.mT, pivots


def _middles(basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return K and M `[*, l, l]` of a basis `[*, D, l]`, and whether they are finite, `[*]`."""
    columns = basis.shape[-1]
    identity = torch.eye(columns, dtype=basis.dtype, device=basis.device)
    # `I + B^T B` has no eigenvalue below 1: its factor fails where a number is not finite.
    lower, failed = torch.linalg.cholesky_ex(identity + basis.mT @ basis)
    lower = torch.where((failed != 0)[..., None, None], identity, lower)
    every = identity.expand_as(lower)
    inverse_middle = torch.linalg.solve_triangular(identity + lower, every, upper=False)
    inverse = torch.linalg.solve_triangular(lower, every, upper=False)
    return inverse_middle.mT @ inverse, inverse_middle, failed == 0


def _residual(half: Tensor, trace: Tensor, shift: Tensor) -> Tensor:
    """Return the mean eigenvalue that `B0` `[*, D, l]` leaves to each direction beyond l, `[*]`."""
    size, columns = half.shape[-2:]
    if size == columns:
        return torch.zeros_like(trace)
    # The shift is in every direction of `B0 B0^T` and of the trace, so it is taken out once.
    left = trace + size * shift - half.square().sum((-2, -1))
    residual = left / (size - columns) - shift
    return torch.where(residual > shift, residual, 0.0)
