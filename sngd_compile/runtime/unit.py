"""The roots of one local Fisher per output unit: each row of the weight has a root of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from sngd_compile.runtime.kronecker import FullRoot
from sngd_compile.runtime.pairs import Pair


class UnitRoot(nn.Module):
    """Roots `R_j` of O units: row j of the weight is `w_j = w'_j R_j`.

    Args:
        units: Of every unit, those of one group after the other, `[groups * O, D, D]`.

    Source: docs/method.md, local Fishers. Tested by tests/fishers/test_unit.py.
    """

    def __init__(self, units: FullRoot) -> None:
        """Hold them."""
        super().__init__()
        self.units, self.has_bias = units, units.has_bias

    @property
    def sides(self) -> list[FullRoot]:
        """The roots that are decomposed one by one."""
        return [self.units]

    def matrix(self) -> Tensor:
        """Return the roots, `[groups * O, D, D]`, the bias last."""
        return self.units.matrix()

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w'_j R_j` for `W' [*, O, K]`, `b' [*, O]`."""
        return _by_unit(self.units.fold, weight, bias)

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w_j R_j^-1` for `W [*, O, K]`, `b [*, O]`."""
        return _by_unit(self.units.unfold, weight, bias)

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g_j R_j^T` that `w'` has where `w` has `g`."""
        return _by_unit(self.units.to_prime, weight, bias)

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g'_j R_j^-T` that `w` has where `w'` has `g'`."""
        return _by_unit(self.units.from_prime, weight, bias)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W x~` for rows `[N, K]`: units share no rotated row, so the weight is folded."""
        return F.linear(rows, *self.fold(weight, bias))


def _by_unit(
    change: Callable[[Tensor, Tensor | None], Pair], weight: Tensor, bias: Tensor | None
) -> Pair:
    """Apply a map of groups with one output each."""
    rows = weight.reshape(-1, 1, weight.shape[-1])
    changed, changed_bias = change(rows, None if bias is None else bias.reshape(-1, 1))
    if bias is None or changed_bias is None:
        return changed.view(weight.shape), None
    return changed.view(weight.shape), changed_bias.view(bias.shape)
