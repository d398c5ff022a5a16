"""The root of one local Fisher over all weights of a layer whose outputs are the logits."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from sngd_compile.runtime.kronecker import FullRoot
from sngd_compile.runtime.pairs import Pair, join, split


class SoftmaxRoot(nn.Module):
    """A root R of `vec([W b])`, one output after the other: `vec(w) = R^T vec(w')`.

    Args:
        weights: Over all O D weights, `[O D, O D]`.
        has_bias: Whether the last of the D weights of an output is its bias.

    Source: docs/method.md, local Fishers. Tested by tests/fishers/test_softmax.py.
    """

    def __init__(self, weights: FullRoot, has_bias: bool) -> None:
        """Hold it."""
        super().__init__()
        self.weights, self.has_bias = weights, has_bias

    @property
    def sides(self) -> list[FullRoot]:
        """The roots that are decomposed one by one."""
        return [self.weights]

    def matrix(self) -> Tensor:
        """Return the root, `[O D, O D]`."""
        return self.weights.matrix()

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `vec(w') R` for `W' [O, K]`, `b' [O]`."""
        return _as_one(self.weights.fold, weight, bias)

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `vec(w) R^-1` for `W [O, K]`, `b [O]`."""
        return _as_one(self.weights.unfold, weight, bias)

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `vec(g) R^T` that `w'` has where `w` has `g`."""
        return _as_one(self.weights.to_prime, weight, bias)

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `vec(g') R^-T` that `w` has where `w'` has `g'`."""
        return _as_one(self.weights.from_prime, weight, bias)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W x~` for rows `[N, K]`: outputs are mixed too, so the weight is folded."""
        return F.linear(rows, *self.fold(weight, bias))


def _as_one(
    change: Callable[[Tensor, Tensor | None], Pair], weight: Tensor, bias: Tensor | None
) -> Pair:
    """Apply a map of one output to all weights, laid out as one row."""
    joined = join(weight, bias)
    changed, _ = change(joined.reshape(1, -1), None)
    return split(changed.view(joined.shape), bias)
