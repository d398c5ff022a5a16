"""The roots of one local Fisher per output unit: each row of the weight has a root of its own."""

from __future__ import annotations

from torch import Tensor

from sngd_compile.fisher.roots.pairs import Pair
from sngd_compile.fisher.roots.rearranged import Change, RearrangedRoot


class UnitRoot(RearrangedRoot):
    """Roots `R_j` of O units, those of one group after the other, `[groups * O, D, D]`.

    Row j of the weight is `w_j = w'_j R_j`.

    Source: docs/method.md, local Fishers. Tested by tests/fishers/test_unit.py.
    """

    @staticmethod
    def laid_out(change: Change, weight: Tensor, bias: Tensor | None) -> Pair:
        """Apply a map of groups with one output each."""
        rows = weight.reshape(-1, 1, weight.shape[-1])
        changed, changed_bias = change(rows, None if bias is None else bias.reshape(-1, 1))
        if bias is None or changed_bias is None:
            return changed.view(weight.shape), None
        return changed.view(weight.shape), changed_bias.view(bias.shape)
