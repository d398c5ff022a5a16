"""Roots `R` of the inverse of a damped factor, `R^T R = G^-1`, and the four maps they give.

Legend: O outputs, K weights of one output, D = K + 1 with a bias (last), K without.
All tensors may have a leading groups axis. `w = w' R` with `w = [W b]`, `w' = [W' b']`:

    fold            w  = w' R           unfold            w' = w R^-1
    to_prime        g' = g R^T          from_prime        g  = g' R^-T        (gradients)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

import sngd_kernels
from sngd_compile.fisher.roots.block import BlockRoot
from sngd_compile.fisher.roots.cholesky import CholeskyRoot
from sngd_compile.fisher.roots.dense import DenseRoot
from sngd_compile.fisher.roots.diagonal import DiagonalRoot
from sngd_compile.fisher.roots.eigen import Eigenbasis, EigenRoot
from sngd_compile.fisher.roots.kronecker import FullRoot, KroneckerRoot
from sngd_compile.fisher.roots.low_rank import LowRankRoot
from sngd_compile.fisher.roots.softmax import SoftmaxRoot
from sngd_compile.fisher.roots.unit import UnitRoot

SimpleRoot = FullRoot | DiagonalRoot
"""Of a local Fisher with one factor."""

FactorRoot = SimpleRoot | Eigenbasis
"""Made from one factor."""

TwoSidedRoot = KroneckerRoot | EigenRoot
Root = SimpleRoot | TwoSidedRoot | BlockRoot | UnitRoot | SoftmaxRoot
ITERATIONS: dict[str, Callable[..., Tensor]] = {
    "denman_beavers": sngd_kernels.denman_beavers,
    "newton_schulz": sngd_kernels.newton_schulz,
}
NEAR = 0.3
"""Largest residual of an old root, not divided by anything, from which a warm step is taken."""

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Residual before the last step, which squares it."""


@dataclass(frozen=True)
class Decomposed:
    """What became of matrices that were decomposed in one call.

    Args:
        definite: For each, whether it was definite, so that it has a root.
        is_warm: For each, whether its root is a step from the present one.
        instead: "", or why an eigendecomposition had to stand in for an iteration.
    """

    definite: list[bool]
    is_warm: list[bool]
    instead: str


@torch.no_grad()
def decompose_all_(
    roots: Sequence[FactorRoot],
    damped: Sequence[Tensor],
    method: str,
    present: Sequence[FactorRoot],
) -> Decomposed:
    """Become the roots of matrices of one shape, in one call.

    Args:
        roots: Of one class, shape, dtype and device.
        damped: A damped factor for each; for an eigenbasis a factor.
        method: The configured root, see `Config`.
        present: For each, the root that it will replace.

    Returns:
        What was found; where a matrix was not definite, the root stays as it was.
    """
    first = roots[0]
    batch = damped[0][None] if len(damped) == 1 else torch.stack([*damped])
    instead, is_warm = "", [False] * len(roots)
    more: list[Tensor] = []
    if isinstance(first, DiagonalRoot):
        found, info = sngd_kernels.diagonal_root_ex(batch)
    elif isinstance(first, Eigenbasis):
        found, *more, info = sngd_kernels.eigenpairs_ex(batch)
    elif isinstance(first, LowRankRoot):
        found, *more, info = sngd_kernels.nystrom_root_ex(batch, first.gains.shape[-1])
    elif isinstance(first, DenseRoot):
        found, info, is_warm = _warm_roots(
            batch, first.has_bias, cast(Sequence[DenseRoot], present)
        )
    elif isinstance(first, CholeskyRoot):
        found, info = sngd_kernels.cholesky_inverse_ex(batch, bias=first.has_bias)
    else:
        found, info, instead = _symmetric_roots(batch, method)
    definite = (info == 0).reshape(len(roots), -1).all(1).tolist()
    parts_of: Iterator[Any] = zip(found, *more, strict=True)
    for root, good, parts in zip(roots, definite, parts_of, strict=True):
        if good:
            root.take_(*parts)
    return Decomposed(definite, is_warm, instead)


def _warm_roots(
    batch: Tensor, bias: bool, present: Sequence[DenseRoot]
) -> tuple[Tensor, Tensor, list[bool]]:
    """Take one step from each present root, or a new one where it is too far away.

    Returns:
        Roots, flaws, and for each whether it is a step from the present one.
    """
    old = torch.stack([root.matrix().to(batch.dtype) for root in present])
    found, residual = sngd_kernels.warm_root(old, batch)
    near = (residual <= NEAR).reshape(len(present), -1).all(1)
    info = torch.zeros(batch.shape[:-2], dtype=torch.int32, device=batch.device)
    is_near = near.tolist()
    if not all(is_near):
        far = (~near).nonzero().flatten()
        found[far], info[far] = sngd_kernels.cholesky_inverse_ex(batch[far], bias=bias)
    return found, info, is_near


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
