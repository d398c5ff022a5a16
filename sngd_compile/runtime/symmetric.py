"""The symmetric root `G^(-1/2)` of the paper."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sngd_compile.runtime.pairs import Pair, SelfAdjointRoot, identity, join, split


class SymmetricRoot(SelfAdjointRoot):
    """The symmetric root `R = G^(-1/2)`.

    Args:
        size: D, weights of one output, bias included.
        has_bias: Whether the last coordinate is the bias.
        groups: Leading axis; None for none.
        dtype: float32 or float64.
        device: Where the buffer lives.

    Source: arXiv 2412.07441, `w = G^(-1/2) w'`. Law 7 tests `R (G + damping) R^T = I`.
    """

    symmetric: Tensor

    def __init__(
        self,
        size: int,
        has_bias: bool,
        groups: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Start as the identity."""
        super().__init__()
        self.has_bias = has_bias
        self.register_buffer("symmetric", identity(size, groups, dtype, device))

    def take_(self, root: Tensor) -> None:
        """Become the root `R` `[*, D, D]`, the bias last."""
        self.symmetric = root

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
