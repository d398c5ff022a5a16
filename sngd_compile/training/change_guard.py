"""Whether a refresh has kept the function, as far as the dtype of the weights allows."""

from __future__ import annotations

from functools import cache
from math import sqrt

import torch
from torch import Tensor

from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.weight_map import as_matrices
from sngd_compile.training.sharding import whole

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


class FunctionChangedError(Exception):
    """A new root cannot express the present weights.

    Args:
        change: Of the folded weights, in units of their norm.
    """

    def __init__(self, change: float) -> None:
        super().__init__(f"the folded weights change by {change:.1e} of their norm")
        self.change = change


class ChangeGuard:
    """Compare the folded weights before and after a change of the root.

    Args:
        fisher: The Fisher layer, before the change.
        weight: w'.
        bias: b', or None.
    """

    def __init__(self, fisher: FisherLayer, weight: Tensor, bias: Tensor | None) -> None:
        self.fisher, self.weight, self.bias = fisher, weight, bias
        self.before = self._folded()

    def check(self) -> None:
        """Look at the weights after the change; all processes come to the same answer.

        Raises:
            FunctionChangedError: They are others.
        """
        after, group = self._folded(), self.fisher.ties.process_group
        pairs = list(zip(self.before, after, strict=True))
        squares = [(torch.dist(old, new).square(), old.square().sum()) for old, new in pairs]
        moved, size = (torch.stack(list(parts)).sum() for parts in zip(*squares, strict=True))
        # Zeros that stay zeros have not changed.
        change = torch.where(moved == 0, 0.0, (moved / size).sqrt())
        if group is not None:
            torch.distributed.all_reduce(change, torch.distributed.ReduceOp.MAX, group=group)
        bound = MOST_ROUNDINGS * torch.finfo(self.weight.dtype).eps * sqrt(self.fisher.size)
        bound = min(max(bound, HARMLESS_CHANGE), LARGEST_CHANGE)
        # Asked this way round, so that what is no number is refused too.
        if not float(change) <= bound:
            raise FunctionChangedError(float(change))

    def _folded(self) -> list[Tensor]:
        """Fold weight and bias, the numbers in float64; of many outputs a few random sums."""
        root, layout, kind = self.fisher.root_buffers, self.fisher.layout, kind_of(self.fisher.spec)
        bias = None if self.bias is None else whole(self.bias.detach())
        weight, bias = as_matrices(layout, whole(self.weight.detach()), bias, root.dtype)
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
