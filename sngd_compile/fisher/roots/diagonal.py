"""The root of a diagonal factor: one positive number per weight of an output.

It has no name in `Config.root`: a diagonal has this root, whatever is configured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

import sngd_kernels
from sngd_compile.fisher.roots.base import Decomposition, Pair, RootShape
from sngd_compile.fisher.roots.pairs import SelfAdjointRoot


class DiagonalRoot(SelfAdjointRoot):
    """The root `R = diag(d + damping)^(-1/2)` of a diagonal factor `d`.

    Args:
        shape: Of the factor.

    Source: docs/method.md, local Fishers. Law 7 tests `R (G + damping) R^T = I`.
    """

    gain: Tensor

    def __init__(self, shape: RootShape) -> None:
        """Start as the identity."""
        super().__init__(shape)
        self.register_buffer("gain", shape.full(1.0, shape.size))

    @classmethod
    def decompose(cls, damped: Tensor, roots: Sequence[Any]) -> Decomposition:
        """Take the reciprocal square root of every number."""
        root, info = sngd_kernels.diagonal_root_ex(damped)
        return Decomposition((root,), info)

    def take_(self, *parts: Tensor) -> None:
        """Become the root of this diagonal, `[*, D]`, the bias last."""
        (self.gain,) = parts

    def matrix(self) -> Tensor:
        """Return the diagonal of `R`, `[*, D]`, the bias last."""
        return self.gain.clone()

    def squared_norm(self) -> Tensor:
        """Return the sum of the squares, `[*]`, float64."""
        return self.gain.double().square().sum(-1)

    def singular_range(self) -> tuple[Tensor, Tensor]:
        """Return the least and the largest number."""
        least, largest = self.gain.double().aminmax(dim=-1)
        return least, largest

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` for `W' [*, O, K]`, `b' [*, O]`."""
        (gain,) = self.numbers()
        gain = gain[..., None, :] if gain.dim() > 1 else gain
        if bias is None:
            return weight * gain, None
        return weight * gain[..., :-1], bias * gain[..., -1]

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` for `W [*, O, K]`, `b [*, O]`."""
        gain = self.gain[..., None, :]
        if bias is None:
            return weight / gain, None
        return weight / gain[..., :-1], bias / gain[..., -1]

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W' (R x~)` for rows `[N, K]`: the activation side."""
        if bias is None:
            return F.linear(rows * self.gain, weight)
        return F.linear(rows * self.gain[:-1], weight, bias * self.gain[-1])
