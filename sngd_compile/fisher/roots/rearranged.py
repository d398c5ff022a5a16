"""Roots that act on the weights of a layer laid out in another way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from sngd_compile.fisher.roots.kronecker import FullRoot
from sngd_compile.fisher.roots.pairs import Pair

Change = Callable[[Tensor, Tensor | None], Pair]
"""A map of weights and biases, `[*, O, K]` and `[*, O]`."""


class RearrangedRoot(nn.Module):
    """A full root of weights that a subclass lays out for it.

    Args:
        full: The root.
        has_bias: Whether the last of the D weights of an output is its bias.
    """

    def __init__(self, full: FullRoot, has_bias: bool) -> None:
        """Hold it."""
        super().__init__()
        self.full, self.has_bias = full, has_bias

    @staticmethod
    @abstractmethod
    def laid_out(change: Change, weight: Tensor, bias: Tensor | None) -> Pair:
        """Apply a map to weights in the layout of the full root."""

    @property
    def sides(self) -> list[FullRoot]:
        """The roots that are decomposed one by one."""
        return [self.full]

    def matrix(self) -> Tensor:
        """Return the full root, as the factor has it."""
        return self.full.matrix()

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w` for `W' [*, O, K]`, `b' [*, O]`."""
        return self.laid_out(self.full.fold, weight, bias)

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w'` for `W [*, O, K]`, `b [*, O]`."""
        return self.laid_out(self.full.unfold, weight, bias)

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient that `w'` has where `w` has `g`."""
        return self.laid_out(self.full.to_prime, weight, bias)

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient that `w` has where `w'` has `g'`."""
        return self.laid_out(self.full.from_prime, weight, bias)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W x~` for rows `[N, K]`: no rotated row serves all outputs, so `w'` is folded."""
        return F.linear(rows, *self.fold(weight, bias))
