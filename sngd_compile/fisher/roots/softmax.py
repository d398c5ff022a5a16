"""The root of one local Fisher over all weights of a layer whose outputs are the logits."""

from __future__ import annotations

from torch import Tensor

from sngd_compile.fisher.roots.pairs import Pair, join, split
from sngd_compile.fisher.roots.rearranged import Change, RearrangedRoot


class SoftmaxRoot(RearrangedRoot):
    """A root R of `vec([W b])`, `[O D, O D]`, one output after the other.

    `vec(w) = R^T vec(w')`.

    Source: docs/method.md, local Fishers. Tested by tests/fishers/test_softmax.py.
    """

    @staticmethod
    def laid_out(change: Change, weight: Tensor, bias: Tensor | None) -> Pair:
        """Apply a map of one output to all weights, laid out as one row."""
        joined = join(weight, bias)
        changed, _ = change(joined.reshape(1, -1), None)
        return split(changed.view(joined.shape), bias)
