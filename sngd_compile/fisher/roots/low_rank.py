"""The root of a wide factor from its largest eigenpairs and one number for the rest."""

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


@register_root("nystrom")
class LowRankRoot(SelfAdjointRoot):
    """The symmetric root `R = t (I + U diag(s) U^T)`, `U` `[D, r]` with orthonormal columns.

    Applying it is two skinny products. With gains `g` of the eigenvectors and a tail `t`,
    `s = g / t - 1`; the inverse has the same form, with `1 / t` and `t / g - 1`.

    Args:
        shape: Of the factor.

    Source: docs/method.md, roots; arXiv 2412.07441 for `w = G^(-1/2) w'`.
    """

    vectors: Tensor
    gains: Tensor

    def __init__(self, shape: RootShape) -> None:
        """Start as the identity."""
        super().__init__(shape)
        kept = min(shape.rank, shape.size)
        self.register_buffer("vectors", shape.identity(shape.size)[..., :kept].contiguous())
        self.register_buffer("gains", shape.full(1.0, kept))

    @classmethod
    def decompose(cls, damped: Tensor, roots: Sequence[Any]) -> Decomposition:
        """Find the largest eigenpairs, and one number for the rest."""
        *parts, info = sngd_kernels.nystrom_root_ex(damped, roots[0].gains.shape[-1])
        return Decomposition(tuple(parts), info)

    def take_(self, *parts: Tensor) -> None:
        """Become the root of these eigenvectors `[*, D, r]` and gains `[*, r]`, the tail last."""
        self.vectors, self.gains = parts

    @classmethod
    def step_work(cls, elements: int, width: int, rank: int) -> int:
        """Count two skinny products, each way."""
        return 4 * elements * min(rank, width)

    def matrix(self) -> Tensor:
        """Return `R` `[*, D, D]`, the bias last."""
        size = self.vectors.shape[-2]
        identity = torch.eye(size, dtype=self.gains.dtype, device=self.gains.device)
        return self._apply_to(identity.expand(*self.gains.shape[:-1], -1, -1), self.gains)

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` for `W' [*, O, K]`, `b' [*, O]`."""
        return split(self._apply_to(join(weight, bias), self.gains), bias)

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` for `W [*, O, K]`, `b [*, O]`."""
        return split(self._apply_to(join(weight, bias), self.gains.reciprocal()), bias)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W' (R x~)` for rows `[N, K]`: the activation side."""
        if bias is None:
            return F.linear(self._apply_to(rows, self.gains), weight)
        rotated = self._apply_to(F.pad(rows, (0, 1), value=1.0), self.gains)
        return F.linear(rotated[:, :-1], weight) + rotated[:, -1:] * bias

    def _apply_to(self, rows: Tensor, gains: Tensor) -> Tensor:
        """Return rows `[*, M, D]` times the matrix of these gains, the last one being the tail."""
        tail = gains[..., None, -1:]
        stretched = (rows @ self.vectors) * (gains[..., None, :] - tail)
        return rows * tail + stretched @ self.vectors.mT
