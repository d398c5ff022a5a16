"""Cholesky factors and their inverses with PyTorch's own operations: the CPU path, and large D."""

import torch
from torch import Tensor

# Largest |a_ij - a_ji| over the largest diagonal entry that counts as rounding.
ASYMMETRY = {torch.float32: 1e-4, torch.float64: 1e-10}

# What `info` counts beside the pivots, which are counted from 1.
NOT_FINITE = -1
NOT_SYMMETRIC = -2


def flaws(matrices: Tensor) -> Tensor:
    """Return, int32 `[B]`, NOT_FINITE, NOT_SYMMETRIC or 0 for each of `matrices` `[B, D, D]`."""
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
        return matrices.new_empty(matrices.shape), flaws_of_nothing(matrices)
    info = flaws(matrices)
    damped = matrices.roll((1, 1), (-2, -1)) if bias else matrices.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damping[:, None])
    lower, pivots = torch.linalg.cholesky_ex(damped)
    # An infinite pivot passes as a factor.
    infinite = ~lower.diagonal(dim1=-2, dim2=-1).isfinite()
    pivots = torch.where(pivots == 0, _first(infinite), pivots)
    info = torch.where(info == 0, pivots, info)
    identity = torch.eye(damped.shape[-1], dtype=damped.dtype, device=damped.device)
    inverse: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
    inverse = inverse.roll((-1, -1), (-2, -1)) if bias else inverse
    return inverse.masked_fill_((info != 0)[:, None, None], torch.nan), info


def flaws_of_nothing(matrices: Tensor) -> Tensor:
    """Return `info` for empty matrices: nothing is wrong with them."""
    return torch.zeros(len(matrices), dtype=torch.int32, device=matrices.device)


def _first(marks: Tensor) -> Tensor:
    """Count, from 1, where the first mark of each row stands; 0 without any."""
    return (marks.int().argmax(-1).int() + 1) * marks.any(-1)
