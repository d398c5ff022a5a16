"""Roots that are held as a matrix, whatever its form."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sngd_compile.fisher.roots.pairs import Pair, identity, join, split


class MatrixRoot(nn.Module):
    """A root `R` of which nothing but its entries is known.

    Args:
        size: D, weights of one output, bias included.
        has_bias: Whether the last coordinate is the bias.
        groups: Leading axis; None for none.
        dtype: float32 or float64.
        device: Where the buffer lives.

    Attributes:
        buffer: Name of the buffer that holds it.
    """

    buffer: ClassVar[str]

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
        self.register_buffer(self.buffer, identity(size, groups, dtype, device))

    @property
    def held(self) -> Tensor:
        """The matrix itself, `[*, D, D]`."""
        held: Tensor = getattr(self, self.buffer)
        return held

    def take_(self, root: Tensor) -> None:
        """Become the root `R` `[*, D, D]`, the bias last."""
        setattr(self, self.buffer, root)

    def matrix(self) -> Tensor:
        """Return `R` `[*, D, D]`, the bias last."""
        return self.held.clone()

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` for `W' [*, O, K]`, `b' [*, O]`."""
        return split(join(weight, bias) @ self.held, bias)

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` for `W [*, O, K]`, `b [*, O]`."""
        joined = join(weight, bias)
        return split(torch.linalg.solve(self.held, joined, left=False), bias)

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g R^T` that `w'` has where `w` has `g`."""
        return split(join(weight, bias) @ self.held.mT, bias)

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g' R^-T` that `w` has where `w'` has `g'`."""
        joined = join(weight, bias)
        return split(torch.linalg.solve(self.held.mT, joined, left=False), bias)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W' (R x~)` for rows `[N, K]`: the activation side."""
        if bias is None:
            return F.linear(F.linear(rows, self.held), weight)
        rotated = F.linear(rows, self.held[:, :-1], self.held[:, -1])
        return F.linear(rotated[:, :-1], weight) + rotated[:, -1:] * bias


class DenseRoot(MatrixRoot):
    """Any `R` with `R^T R = G^-1`: neither symmetric nor triangular, as a warm step makes it.

    Source: docs/method.md, roots; arXiv 2412.07441 for the local Fisher layer.
    """

    buffer = "dense"
