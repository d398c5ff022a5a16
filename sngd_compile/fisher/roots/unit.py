"""The roots of one local Fisher per output unit: each row of the weight has a root of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from sngd_compile.fisher.roots.base import Change, FactorRoot, Pair, Root


class UnitRoot(Root):
    """Roots `R_j` of O units, those of one group after the other: `w_j = w'_j R_j`.

    Args:
        full: The roots, `[groups * O, D, D]`.
        has_bias: Whether the last of the D weights of an output is its bias.

    Source: docs/method.md, local Fishers. Tested by tests/fisher/test_unit.py.
    """

    def __init__(self, full: FactorRoot, has_bias: bool) -> None:
        """Hold them."""
        super().__init__()
        self.full, self.has_bias = full, has_bias

    @property
    def sides(self) -> Sequence[FactorRoot]:
        """The roots, as one batch."""
        return [self.full]

    def matrix(self) -> Tensor:
        """Return `R_j`, `[groups * O, D, D]`."""
        return self.full.matrix()

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` for `W' [*, O, K]`, `b' [*, O]`."""
        return _row_by_row(self.full.fold, weight, bias)

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` for `W [*, O, K]`, `b [*, O]`."""
        return _row_by_row(self.full.unfold, weight, bias)

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g R^T` that `w'` has where `w` has `g`."""
        return _row_by_row(self.full.to_prime, weight, bias)

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g' R^-T` that `w` has where `w'` has `g'`."""
        return _row_by_row(self.full.from_prime, weight, bias)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W x~` for rows `[N, K]`: no rotated row serves all outputs, so `w'` is folded."""
        return F.linear(rows, *self.fold(weight, bias))


def _row_by_row(change: Change, weight: Tensor, bias: Tensor | None) -> Pair:
    """Apply a map of groups with one output each."""
    rows = weight.reshape(-1, 1, weight.shape[-1])
    changed, changed_bias = change(rows, None if bias is None else bias.reshape(-1, 1))
    if bias is None or changed_bias is None:
        return changed.view(weight.shape), None
    return changed.view(weight.shape), changed_bias.view(bias.shape)
