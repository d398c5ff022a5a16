"""Eigenvalues and eigenvectors of factors: the basis in which two of them are damped as one."""

import torch
from torch import Tensor

from .cholesky_inverse import check_square
from .factors import flaws


def eigenpairs_ex(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `d` and `Q` of `G = Q diag(d) Q^T`, decomposed in float64.

    float32 fails on factors with many equal eigenvalues.

    Args:
        matrices: `G` `[*, D, D]`, symmetric and positive but for rounding, float32 or float64.

    Returns:
        The eigenvalues `[*, D]`, float64, ascending, those below zero as zero; the eigenvectors
        `[*, D, D]`, float64, in columns; and `info`, int32 `[*]`: 0 where they hold, -1 where an
        entry is not finite, -2 where the matrix is not symmetric. There the pairs are those of the
        identity.

    Raises:
        KernelTypeError: the dtype is neither float32 nor float64.
        KernelValueError: the matrices are not square.

    About `9 D^3` multiply-adds a matrix.

    Source: K-FAC (arXiv 1503.05671), section 6.2. Checked by tests/ops/test_eigenpairs.py.
    """
    check_square(matrices)
    lead = matrices.shape[:-2]
    batch = matrices.detach().reshape(lead.numel(), *matrices.shape[-2:])
    info = flaws(batch)
    # One matrix that is not finite would have the solver fail for all of them.
    identity = torch.eye(batch.shape[-1], dtype=torch.float64, device=batch.device)
    usable = torch.where((info == 0)[:, None, None], batch.double(), identity)
    values, vectors = torch.linalg.eigh(usable)
    values = values.clamp(min=0.0).view(matrices.shape[:-1])
    return values, vectors.view(matrices.shape), info.view(lead)
