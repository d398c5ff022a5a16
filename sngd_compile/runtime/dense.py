"""A root of no special form, as steps from an earlier root make it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sngd_compile.runtime.pairs import Pair, identity, join, split


class DenseRoot(nn.Module):
    """Any `R` with `R^T R = G^-1`: neither symmetric nor triangular.

    Args:
        size: D, weights of one output, bias included.
        has_bias: Whether the last coordinate is the bias.
        groups: Leading axis; None for none.
        dtype: float32 or float64.
        device: Where the buffer lives.

    Source: docs/method.md, roots; arXiv 2412.07441 for the local Fisher layer.
    """

    dense: Tensor

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
        self.register_buffer("dense", identity(size, groups, dtype, device))

    def take_(self, root: Tensor) -> None:
        """Become the root `R` `[*, D, D]`, the bias last."""
        self.dense = root

    def matrix(self) -> Tensor:
        """Return `R` `[*, D, D]`, the bias last."""
        return self.dense.clone()

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` for `W' [*, O, K]`, `b' [*, O]`."""
        return split(join(weight, bias) @ self.dense, bias)

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` for `W [*, O, K]`, `b [*, O]`."""
        joined = join(weight, bias)
        return split(torch.linalg.solve(self.dense, joined, left=False), bias)

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g R^T` that `w'` has where `w` has `g`."""
        return split(join(weight, bias) @ self.dense.mT, bias)

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g' R^-T` that `w` has where `w'` has `g'`."""
        joined = join(weight, bias)
        return split(torch.linalg.solve(self.dense.mT, joined, left=False), bias)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W' (R x~)` for rows `[N, K]`: the activation side."""
        if bias is None:
            return F.linear(F.linear(rows, self.dense), weight)
        rotated = F.linear(rows, self.dense[:, :-1], self.dense[:, -1])
        return F.linear(rotated[:, :-1], weight) + rotated[:, -1:] * bias
