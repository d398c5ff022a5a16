"""The symmetric root `G^(-1/2)` of the paper, by an eigendecomposition or by iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sngd_kernels
from sngd_compile.fisher.roots.base import Decomposition, Pair, RootShape
from sngd_compile.fisher.roots.pairs import SelfAdjointRoot, join, split
from sngd_compile.registry import register_root

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Residual before the last step of an iteration, which squares it."""


@register_root("symmetric")
class SymmetricRoot(SelfAdjointRoot):
    """The symmetric root `R = G^(-1/2)`, for which `R^T` is `R`.

    Attributes:
        symmetric: R, `[*, D, D]`.

    Source: arXiv 2412.07441, `w = G^(-1/2) w'`. Law 7 tests `R (G + damping) R^T = I`.
    """

    symmetric: Tensor

    def __init__(self, shape: RootShape) -> None:
        """Start as the identity."""
        super().__init__(shape)
        self.register_buffer("symmetric", shape.identity(shape.size))

    @classmethod
    def decompose(cls, damped: Tensor, roots: Sequence[Any]) -> Decomposition:
        """Find the roots by an eigendecomposition, where small eigenvalues keep their digits."""
        root, info = sngd_kernels.eigen_root_ex(damped)
        return Decomposition((root,), info)

    def take_(self, *parts: Tensor) -> None:
        """Become the root `R` `[*, D, D]`, the bias last."""
        (self.symmetric,) = parts

    def matrix(self) -> Tensor:
        """Return `R` `[*, D, D]`, the bias last."""
        return self.symmetric.clone()

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` for `W' [*, O, K]`, `b' [*, O]`."""
        return split(join(weight, bias) @ self.symmetric, bias)

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` for `W [*, O, K]`, `b [*, O]`."""
        joined = join(weight, bias)
        return split(torch.linalg.solve(self.symmetric, joined, left=False), bias)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W' (R x~)` for rows `[N, K]`: the activation side."""
        if bias is None:
            return F.linear(F.linear(rows, self.symmetric), weight)
        rotated = F.linear(rows, self.symmetric[:, :-1], self.symmetric[:, -1])
        return F.linear(rotated[:, :-1], weight) + rotated[:, -1:] * bias


@register_root("denman_beavers")
class DenmanBeaversRoot(SymmetricRoot):
    """The symmetric root by the iteration of Denman and Beavers, with eigh where that fails.

    Source: docs/method.md, roots. Tested by tests/ops/test_roots.py.
    """

    @classmethod
    def decompose(cls, damped: Tensor, roots: Sequence[Any]) -> Decomposition:
        """Iterate; where a matrix is too badly conditioned for it, decompose all of them."""
        try:
            root = sngd_kernels.denman_beavers(damped, tolerance=TOLERANCE[damped.dtype])
        except sngd_kernels.NotConvergedError as error:
            # The iteration is one for the batch, and its error does not say which matrix failed.
            found = super().decompose(damped, roots)
            return Decomposition(found.parts, found.info, str(error))
        # What has converged is definite. On the host, where reading that waits for nothing.
        return Decomposition((root,), torch.zeros(damped.shape[:-2]))
