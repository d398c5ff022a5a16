"""Cholesky factors and their inverses with PyTorch's own operations: the CPU path, and large D."""

import torch
from torch import Tensor

from ..precision import exact_products

# Largest |a_ij - a_ji| over the largest diagonal entry that counts as rounding.
ASYMMETRY = {torch.float32: 1e-4, torch.float64: 1e-10}

# Columns of a triangle that are inverted by one solve; on a GPU every call is a launch, or several.
# A refresh of ResNet-50 took 505 solves by 128 columns, and takes 153 by 1024 (decision 18).
SOLVED_AT_ONCE = 128
SOLVED_AT_ONCE_BY_A_DEVICE = 1024

# What `info` counts beside the pivots, which are counted from 1.
NOT_FINITE = -1
NOT_SYMMETRIC = -2


def info_of(matrices: Tensor) -> Tensor:
    """Return, int32 `[B]`, NOT_FINITE, NOT_SYMMETRIC or 0 for each of `matrices` `[B, D, D]`."""
    if matrices.numel() == 0:
        return torch.zeros(len(matrices), dtype=torch.int32, device=matrices.device)
    skew = (matrices - matrices.mT).abs_().amax((-2, -1))
    largest = matrices.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
    # A difference with an infinity or a NaN, itself or its mirror image, is not finite.
    info = torch.zeros(len(matrices), dtype=torch.int32, device=matrices.device)
    info.masked_fill_(skew > ASYMMETRY[matrices.dtype] * largest, NOT_SYMMETRIC)
    return info.masked_fill_(~(skew + largest).isfinite(), NOT_FINITE)


def invert_factor(matrices: Tensor, damping: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """Invert the Cholesky factor of each damped matrix, the bias eliminated first.

    Args:
        matrices: `[B, D, D]`, float32 or float64.
        damping: `[B]`, added to the diagonals.
        bias: whether the last row and column come first.

    Returns:
        `R` `[B, D, D]`, NaN where the matrix has none, and `info`, int32 `[B]`.
    """
    if matrices.numel() == 0:
        return matrices.new_empty(matrices.shape), info_of(matrices)
    info, inverse = info_of(matrices), torch.zeros_like(matrices)
    with exact_products(matrices.device):
        if bias:
            pivots = _invert_bias_first_(inverse, matrices, damping[:, None])
        else:
            # Damped in place, so never the argument; with a bias the Schur complement is damped.
            pivots = _invert_(inverse, matrices.clone(), damping[:, None])
    info = torch.where(info == 0, pivots, info)
    failed = info != 0
    if matrices.device.type != "cpu" or bool(failed.any()):  # only a device would have to wait
        inverse.masked_fill_(failed[:, None, None], torch.nan)
    return inverse, info


def invert_lower_(out: Tensor, lower: Tensor) -> Tensor:
    """Fill `out` `[B, D, D]`, zeros, with the inverses of lower triangular matrices.

    By halves, `[[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]]`: `D^3 / 3` multiply-adds
    in products, where a solve for the identity, which does not know its zeros, takes `D^3 / 2`.
    """
    size = lower.shape[-1]
    at_once = SOLVED_AT_ONCE if lower.device.type == "cpu" else SOLVED_AT_ONCE_BY_A_DEVICE
    if size <= at_once:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        return out.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
    half = (size // 2 + 63) // 64 * 64
    first = invert_lower_(out[..., :half, :half], lower[..., :half, :half])
    second = invert_lower_(out[..., half:, half:], lower[..., half:, half:])
    out[..., half:, :half].baddbmm_(second, lower[..., half:, :half] @ first, beta=0, alpha=-1)
    return out


def _invert_(out: Tensor, matrices: Tensor, damping: Tensor) -> Tensor:
    """Damp matrices, and fill `out`, zeros, with the inverses of their Cholesky factors.

    Returns:
        As `_invert_bias_first_`.
    """
    matrices.diagonal(dim1=-2, dim2=-1).add_(damping)
    lower, pivots = torch.linalg.cholesky_ex(matrices)
    invert_lower_(out, lower)
    return _first_flaw(lower, pivots)


def _invert_bias_first_(out: Tensor, matrices: Tensor, damping: Tensor) -> Tensor:
    """Fill `out` `[B, D, D]`, zeros, with the roots that eliminate the last row and column first.

    The last column of a damped matrix A is `(v, g^2)`, A' the rest. With `C C^T = A' - v v^T / g^2`
    the root is `[[C^-1, -C^-1 v / g^2], [0, 1 / g]]`.

    Returns:
        For each matrix, int32, the pivot that is not positive, counted from 1 in the order of
        elimination; 0 where all are.
    """
    column, square = matrices[..., :-1, -1:], matrices[..., -1:, -1:] + damping[..., None]
    schur = torch.baddbmm(matrices[..., :-1, :-1], column, (column / square).mT, alpha=-1)
    inverse = out[..., :-1, :-1]
    pivots = _invert_(inverse, schur, damping)
    out[..., :-1, -1:].baddbmm_(inverse, column / square, beta=0, alpha=-1)
    out[..., -1:, -1:] = square.rsqrt()
    pivots = torch.where(pivots == 0, pivots, pivots + 1)
    good = (square > 0) & square.isfinite()
    return torch.where(good.flatten(), pivots, 1).int()


def _first_flaw(lower: Tensor, pivots: Tensor) -> Tensor:
    """Count the first infinite pivot of each factor too: it passes as a factor."""
    if lower.shape[-1] == 0:
        return pivots
    infinite = ~lower.diagonal(dim1=-2, dim2=-1).isfinite()
    return torch.where(pivots == 0, first_mark(infinite), pivots)


def first_mark(marks: Tensor) -> Tensor:
    """Count, from 1, where the first mark of each row stands; 0 without any, or without columns."""
    if marks.shape[-1] == 0:
        return torch.zeros(marks.shape[:-1], dtype=torch.int32, device=marks.device)
    return (marks.int().argmax(-1).int() + 1) * marks.any(-1)
