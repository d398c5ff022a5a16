"""The symmetric root by the Denman-Beavers iteration: products and small inverses.

Residuals are Frobenius norms, not divided by the size: the root-mean-square form stops too early.
"""

import torch
from torch import Tensor

from ..errors import KernelValueError, NotConvergedError
from .cholesky_inverse import check_square, cholesky_inverse_ex
from .matmul_nt import matmul_nt


def denman_beavers(matrices: Tensor, *, iterations: int = 12, tolerance: float = 1e-3) -> Tensor:
    """Return the symmetric root `A^(-1/2)` by the Denman-Beavers iteration, in product form.

    `M <- (2 I + mu^2 M + mu^-2 M^-1) / 4`, `Z <- mu Z (I + mu^-2 M^-1) / 2`, from `M = A`, `Z = I`:
    `M` goes to the identity, `Z` to the root. `mu = det(M)^(-1 / 2D)` brings the spectrum to 1 in
    4 to 6 steps for condition numbers up to 1e5.

    Args:
        matrices: damped `A` `[*, D, D]`, symmetric positive definite, float32 or float64.
        iterations: steps allowed, at least 1.
        tolerance: residual `|M - I|` after which one more step is taken and the root returned.

    Returns:
        `[*, D, D]`, exactly symmetric.

    Raises:
        KernelTypeError: the dtype is neither float32 nor float64.
        KernelValueError: the matrices are not square, or `iterations` is below 1.
        NotConvergedError: the residual is still above `tolerance`, or not a number.

    About `3 D^3` multiply-adds a step; it waits for the device once a step.

    Source: Higham 2008, Functions of Matrices, section 6.3. Checked by tests/ops/test_roots.py.
    """
    check_square(matrices)
    if iterations < 1:
        raise KernelValueError(f"iterations is {iterations}; expected at least 1")
    size = matrices.shape[-1]
    identity = torch.eye(size, dtype=matrices.dtype, device=matrices.device)
    residual = torch.linalg.matrix_norm(matrices - identity)
    step, root = matrices, identity.expand_as(matrices)
    for _ in range(iterations):
        converged = bool((residual <= tolerance).all())
        # Not asked, which would be one more wait: what has no factor is NaN from here on, its
        # residual is never small, and so the error in the end is raised for it.
        factor, _info = cholesky_inverse_ex(step)
        inverse = matmul_nt(factor.mT, factor.mT, symmetric=True)
        log_scale = factor.diagonal(dim1=-2, dim2=-1).log().mean(-1)  # of det(M)^(-1 / 2D)
        scale = log_scale.exp()[..., None, None]
        inverse = inverse / scale.square()
        # In full, not `symmetric`: the factors commute in exact arithmetic only.
        root = matmul_nt(root, inverse, alpha=0.5, beta=0.5, addend=root) * scale
        if converged:
            return (root + root.mT) / 2
        step = (step * scale.square() + inverse) / 4 + identity / 2
        residual = torch.linalg.matrix_norm(step - identity)
    worst = residual.nan_to_num(torch.inf).max().item()
    raise NotConvergedError(
        f"denman_beavers: the residual is {worst:.1e} after {iterations} iterations; expected at "
        f"most {tolerance:.0e}: damp the matrix to a condition number below 1e5, compute in "
        "float64, or use cholesky_inverse"
    )
