"""Roots `R` of the inverse of a damped factor, `R^T R = G^-1`, and the four maps they give.

Legend: O outputs, K weights of one output, D = K + 1 with a bias (last), K without.
All tensors may have a leading groups axis. `w = w' R` with `w = [W b]`, `w' = [W' b']`:

    fold            w  = w' R           unfold            w' = w R^-1
    to_prime        g' = g R^T          from_prime        g  = g' R^-T        (gradients)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

import sngd_kernels
from sngd_compile.runtime.cholesky import CholeskyRoot
from sngd_compile.runtime.diagonal import DiagonalRoot
from sngd_compile.runtime.eigen import Eigenbasis, EigenRoot, eigenpairs
from sngd_compile.runtime.kronecker import FullRoot, KroneckerRoot
from sngd_compile.runtime.symmetric import SymmetricRoot

SimpleRoot = FullRoot | DiagonalRoot
"""Of a local Fisher with one factor."""

FactorRoot = SimpleRoot | Eigenbasis
"""Made from one factor."""

TwoSidedRoot = KroneckerRoot | EigenRoot
Root = SimpleRoot | TwoSidedRoot
Decomposed = tuple[list[bool], str]
FULL_ROOTS: dict[str, type[CholeskyRoot] | type[SymmetricRoot]] = {
    "cholesky": CholeskyRoot,
    "symmetric": SymmetricRoot,
    "denman_beavers": SymmetricRoot,
    "newton_schulz": SymmetricRoot,
}
ITERATIONS: dict[str, Callable[..., Tensor]] = {
    "denman_beavers": sngd_kernels.denman_beavers,
    "newton_schulz": sngd_kernels.newton_schulz,
}
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Residual before the last step, which squares it."""


def root_class(kind: str, root: str) -> type[SimpleRoot]:
    """Return the class of the root of a factor of this kind, `root` being the configured one."""
    return DiagonalRoot if kind == "diagonal" else FULL_ROOTS[root]


@torch.no_grad()
def decompose_all_(
    roots: Sequence[FactorRoot], damped: Sequence[Tensor], method: str
) -> Decomposed:
    """Become the roots of matrices of one shape, in one call.

    Args:
        roots: Of one class, shape, dtype and device.
        damped: A damped factor for each; for an eigenbasis a factor.
        method: The configured root, a key of `FULL_ROOTS`.

    Returns:
        For each, whether its matrix was definite; where not, the root stays as it was. And "", or
        why an eigendecomposition had to stand in for an iteration.
    """
    first = roots[0]
    batch = damped[0][None] if len(damped) == 1 else torch.stack([*damped])
    found: Iterable[Any]
    instead = ""
    if isinstance(first, Eigenbasis):
        found, info = eigenpairs(batch)
    elif isinstance(first, DiagonalRoot):
        found, info = batch.rsqrt(), ~((batch > 0) & batch.isfinite())
    elif isinstance(first, CholeskyRoot):
        found, info = sngd_kernels.cholesky_inverse_ex(batch, bias=first.has_bias)
    else:
        found, info, instead = _symmetric_roots(batch, method)
    definite = [bool(good) for good in (info == 0).reshape(len(roots), -1).all(1)]
    for root, matrix, good in zip(roots, found, definite, strict=True):
        if good:
            root.take_(matrix)
    return definite, instead


def _symmetric_roots(batch: Tensor, method: str) -> tuple[Tensor, Tensor, str]:
    """Return roots, flaws and why the method did not serve; "" where it did."""
    instead = ""
    if method in ITERATIONS:
        try:
            root = ITERATIONS[method](batch, tolerance=TOLERANCE[batch.dtype])
            return root, torch.zeros(batch.shape[:-2]), ""
        except sngd_kernels.NotConvergedError as error:
            instead = str(error)
    return *sngd_kernels.eigen_root_ex(batch), instead


def copy_root_(root: Root, source: Root) -> None:
    """Write the buffers of `source` into those of `root`, in place and in their dtype."""
    for name, buffer in root.named_buffers():
        buffer.copy_(source.get_buffer(name))
