"""`matmul_nt` with PyTorch's own operations."""

import torch
from torch import Tensor

from ..moments.rows import mirror_, upper_product_
from ..precision import exact_products


def product_nt(
    a: Tensor,
    b: Tensor,
    addend: Tensor | None,
    alpha: float,
    beta: float,
    gamma: float,
    symmetric: bool,
) -> tuple[Tensor, Tensor]:
    """Return `alpha A B^T + beta D + gamma I` `[B, M, N]` and its Frobenius norms `[B]`.

    Args:
        a: `[B, M, K]`.
        b: `[B, N, K]`.
        addend: `D` `[B, M, N]` or nothing.
        alpha: factor of the product.
        beta: factor of the addend.
        gamma: factor of the identity.
        symmetric: compute the upper triangle, and mirror it.
    """
    result = a.new_zeros(len(a), a.shape[1], b.shape[1])
    with exact_products(a.device):
        if addend is not None:
            result.add_(addend, alpha=beta)
        if gamma:
            result.diagonal(dim1=-2, dim2=-1).add_(gamma)
        if symmetric:
            mirror_(upper_product_(result, a.mT, b.mT, alpha=alpha, add=True))
        else:
            result.baddbmm_(a, b.mT, alpha=alpha)
    return result, torch.linalg.vector_norm(result, dim=(-2, -1))
