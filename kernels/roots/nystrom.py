"""A root of low rank and a tail: a few eigenpairs of a wide matrix, and one number for the rest."""

import torch
from torch import Tensor

from ..errors import KernelValueError
from ..precision import exact_products
from .cholesky_inverse import check_square
from .factors import NOT_FINITE, info_of

# Products with the matrix before the last one; each sharpens the subspace.
POWER_ITERATIONS = 2


def nystrom_root_ex(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return `U` and gains with `A^(-1/2)` near `U diag(g) U^T + t (I - U U^T)`.

    The range finder is a seeded random basis Q after two power iterations; with `Y = A Q` and
    `C C^T = Q^T Y` the Nystroem approximation is `A ~ B B^T`, `B = Y C^-T`, whose singular values
    are the roots of the eigenvalues `e`. The gains are `e^(-1/2)`; the tail is that of the smallest
    of them, `t = e_r^(-1/2)`: of a damped `A = G + damping I` that is `lambda_r + damping`, and the
    damping alone would make steps in the rest far too long.

    Args:
        matrices: damped `A` `[*, D, D]`, symmetric positive definite, float32 or float64.
        rank: r, eigenpairs to keep, at least 1; D of them are exact, and more there are not.

    Returns:
        `U` `[*, D, r]`, orthonormal columns; the gains `[*, r]`, increasing, the last one being the
        tail; and `info`, int32 `[*]`: 0 where they hold; k where the k-th pivot of `Q^T A Q` is not
        positive, or r where the last eigenvalue is no more than rounding; -1 where an entry is not
        finite, -2 where the matrix is not symmetric. `U` and gains are NaN wherever `info` is not
        0.

    Raises:
        KernelTypeError: the dtype is neither float32 nor float64.
        KernelValueError: the matrices are not square, or `rank` is below 1.

    About `3 D^2 r + 10 D r^2` multiply-adds. The same bits from run to run on one device.

    Source: Frangella, Tropp and Udell 2023, Randomized Nystroem preconditioning, arXiv 2110.02820,
    algorithm 2.1; the tail is docs/method.md's. Checked by tests/ops/test_nystrom.py.
    """
    check_square(matrices)
    if rank < 1:
        raise KernelValueError(f"rank is {rank}; expected at least 1, the eigenpairs to keep")
    lead, size = matrices.shape[:-2], matrices.shape[-1]
    batch = matrices.detach().reshape(lead.numel(), size, size)
    info, kept = info_of(batch), min(rank, size)
    # One matrix that is not finite would have the solver fail for all of them.
    identity = torch.eye(size, dtype=batch.dtype, device=batch.device)
    usable = torch.where((info != NOT_FINITE)[:, None, None], batch, identity)
    with exact_products(batch.device):
        basis = _range(usable, kept)
        image = usable @ basis
        inner = basis.mT @ image
        lower, pivots = torch.linalg.cholesky_ex((inner + inner.mT) / 2)
        info = torch.where(info == 0, pivots.int(), info)
        failed = (info != 0)[:, None, None]
        lower = torch.where(failed, torch.eye(kept, dtype=batch.dtype, device=batch.device), lower)
        half = torch.linalg.solve_triangular(lower, image.mT, upper=False).mT
        vectors, singular, _ = torch.linalg.svd(half, full_matrices=False)
    # What rounding leaves of an eigenvalue of zero may pass as a pivot.
    least = torch.finfo(batch.dtype).eps * size * singular.amax(-1).square()
    info = torch.where((info == 0) & ~(singular.amin(-1).square() > least), kept, info).int()
    failed = (info != 0)[:, None, None]
    vectors = vectors.masked_fill(failed, torch.nan).reshape(*lead, size, kept)
    gains = singular.reciprocal().masked_fill(failed[..., 0], torch.nan).reshape(*lead, kept)
    return vectors, gains, info.view(lead)


def _range(matrices: Tensor, rank: int) -> Tensor:
    """Return an orthonormal basis `[B, D, r]` of what a power of each matrix stretches most."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrices.shape[-1], rank, generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(start).Q.to(matrices).expand(len(matrices), -1, -1)
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrices @ basis).Q
    return basis
