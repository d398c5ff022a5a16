"""Whether a refresh has kept the function, as far as the dtype of the weights allows."""

from __future__ import annotations

from functools import cache
from math import sqrt

import torch
from torch import Tensor

from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.weight_map import as_matrices

MOST_ROUNDINGS = 256
"""Multiple of `sqrt(D)` roundings of the weights' dtype that a refresh may change them by.

docs/numerics.md says what is usual.
"""

HARMLESS_CHANGE = 1e-6
"""Share of the weights up to which no change matters; float64 with little damping comes near it."""

LARGEST_CHANGE = 0.05
"""Share of the weights beyond which a change is none of rounding, in bfloat16 too."""


SUMS = 16
"""Sums over outputs that are compared in the place of all outputs."""


class ChangeGuard:
    """Compare the folded weights before and after a change of the root.

    Args:
        fisher: The Fisher layer, before the change.
        weight: w', whole.
        bias: b', whole, or None.
    """

    def __init__(self, fisher: FisherLayer, weight: Tensor, bias: Tensor | None) -> None:
        self.fisher, self.dtype = fisher, weight.dtype
        self.before = self._folded(weight, bias)

    def change(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the change of the folded weights in units of their norm; infinity for no number.

        Args:
            weight: w' after the change, whole.
            bias: b', whole, or None.
        """
        after = self._folded(weight, bias)
        pairs = list(zip(self.before, after, strict=True))
        squares = [(torch.dist(old, new).square(), old.square().sum()) for old, new in pairs]
        moved, size = (torch.stack(list(parts)).sum() for parts in zip(*squares, strict=True))
        # Zeros that stay zeros have not changed.
        change = torch.where(moved == 0, 0.0, (moved / size).sqrt())
        # Among several processes the largest counts, and what is no number has no order.
        return torch.where(change.isnan(), torch.inf, change)

    def allows(self, change: float) -> bool:
        """Say whether a change is one of rounding."""
        bound = MOST_ROUNDINGS * torch.finfo(self.dtype).eps * sqrt(self.fisher.size)
        return change <= min(max(bound, HARMLESS_CHANGE), LARGEST_CHANGE)

    def _folded(self, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
        """Fold weight and bias, the numbers in float64; of many outputs a few random sums."""
        root, layout, kind = self.fisher.root_buffers, self.fisher.layout, kind_of(self.fisher.spec)
        weight, bias = as_matrices(layout, weight.detach(), bias, root.dtype)
        # A root that acts on each output alike commutes with sums over outputs, whose squared
        # change is on average that of all: so the check costs next to nothing.
        is_alike = not (kind.sees_outputs or kind.has_output_side)
        if is_alike and layout.outputs > SUMS:
            signs = _signs(layout.outputs).to(weight)
            weight, bias = signs @ weight, None if bias is None else bias @ signs.mT
        return [part.double() for part in root.fold(weight, bias) if part is not None]


@cache
def _signs(outputs: int) -> Tensor:
    """Draw the sums, `[SUMS, outputs]` of 1 and -1: the same in every process."""
    generator = torch.Generator().manual_seed(outputs)
    return torch.randint(2, (SUMS, outputs), generator=generator, dtype=torch.int8) * 2 - 1
