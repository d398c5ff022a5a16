"""Roots `R` of the inverse of a damped factor, `R^T R = G^-1`, and the four maps they give.

Legend: O outputs, K weights of one output, D = K + 1 with a bias (last), K without.
All tensors may have a leading groups axis. `w = w' R` with `w = [W b]`, `w' = [W' b']`:

    fold            w  = w' R           unfold            w' = w R^-1
    to_prime        g' = g R^T          from_prime        g  = g' R^-T        (gradients)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

import sngd_kernels
from sngd_compile.runtime.cholesky import CholeskyRoot
from sngd_compile.runtime.diagonal import DiagonalRoot
from sngd_compile.runtime.kronecker import FullRoot, KroneckerRoot
from sngd_compile.runtime.symmetric import SymmetricRoot

FactorRoot = FullRoot | DiagonalRoot
"""Of one factor."""

Root = FactorRoot | KroneckerRoot
FULL_ROOTS: dict[str, type[CholeskyRoot] | type[SymmetricRoot]] = {
    "cholesky": CholeskyRoot,
    "symmetric": SymmetricRoot,
}


def root_class(kind: str, root: str) -> type[FactorRoot]:
    """Return the class of the root of a factor of this kind, `root` being the configured one."""
    return DiagonalRoot if kind == "diagonal" else FULL_ROOTS[root]


@torch.no_grad()
def decompose_all_(roots: Sequence[FactorRoot], damped: Sequence[Tensor]) -> list[bool]:
    """Become the roots of matrices of one shape, in one call where the kind of root allows it.

    Args:
        roots: Of one class, shape, dtype and device.
        damped: A damped factor for each.

    Returns:
        For each, whether its matrix was definite; where not, the root stays as it was.
    """
    first = roots[0]
    if not isinstance(first, CholeskyRoot):
        others = cast(Sequence[SymmetricRoot | DiagonalRoot], roots)
        return [root.decompose_(matrix) for root, matrix in zip(others, damped, strict=True)]
    batch = damped[0][None] if len(damped) == 1 else torch.stack([*damped])
    inverses, info = sngd_kernels.cholesky_inverse_ex(batch, bias=first.has_bias)
    definite = [bool(good) for good in (info == 0).reshape(len(roots), -1).all(1)]
    for root, inverse, good in zip(roots, inverses, definite, strict=True):
        if good and isinstance(root, CholeskyRoot):
            root.take_(inverse)
    return definite


def copy_root_(root: Root, source: Root) -> None:
    """Write the buffers of `source` into those of `root`, in place and in their dtype."""
    for name, buffer in root.named_buffers():
        buffer.copy_(source.get_buffer(name))
