"""Registration with torch.library of roots and products: for a graph, fakes and vmap."""

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from ..batching import together
from ..dispatch import choose, launcher
from .factors import info_of, invert_factor
from .products import product_nt


@custom_op("sngd_kernels::cholesky_inverse", mutates_args=())
def cholesky_inverse(matrices: Tensor, damping: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """Factorise and invert `matrices` `[B, D, D]`; return the inverses and what is wrong `[B]`."""
    if choose("cholesky_inverse", matrices).path == "triton":
        info = info_of(matrices)
        inverse = launcher("cholesky_inverse", matrices)(matrices, damping, info, bias=bias)
        return inverse, info
    return invert_factor(matrices, damping, bias)


@cholesky_inverse.register_fake
def _(matrices: Tensor, damping: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    inverse = matrices.new_empty(matrices.shape)
    return inverse, matrices.new_empty(matrices.shape[:1], dtype=torch.int32)


@custom_op("sngd_kernels::matmul_nt", mutates_args=())
def matmul_nt(
    a: Tensor,
    b: Tensor,
    addend: Tensor | None,
    alpha: float,
    beta: float,
    gamma: float,
    symmetric: bool,
) -> tuple[Tensor, Tensor]:
    """Compute `alpha A B^T + beta D + gamma I` and its Frobenius norm, `[B, M, N]` and `[B]`."""
    # `choose` has seen that A is not empty; the launcher takes neither empty.
    if choose("matmul_nt", a).path == "triton" and b.numel():
        product: tuple[Tensor, Tensor] = launcher("matmul_nt", a)(
            a, b, addend, alpha=alpha, beta=beta, gamma=gamma, symmetric=symmetric
        )
        return product
    return product_nt(a, b, addend, alpha, beta, gamma, symmetric)


@matmul_nt.register_fake
def _(a: Tensor, b: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape[0], a.shape[1], b.shape[1]), a.new_empty(a.shape[0])


for _operation in (cholesky_inverse, matmul_nt):
    _operation.register_vmap(together(_operation))
