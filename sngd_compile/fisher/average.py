"""The running average of a local Fisher, corrected for its start from nothing."""

from __future__ import annotations

from torch import Tensor


def absorb_(average: Tensor, weight: Tensor, sum: Tensor, count: int, kept: float) -> None:
    """Move a sum into an average: `G <- a G + (1 - a) sum / count`, over the weights given so far.

    The first mean counts in full, and no identity or zero lingers.

    Args:
        average: G, corrected.
        weight: Of all means so far, a number; 0 before the first.
        sum: Of what was observed since the last time, shaped like G.
        count: How many it is the sum of, at least 1.
        kept: a, what the past still counts, in [0, 1).

    Source: docs/method.md, estimation and bias correction. Law 6 tests it.
    """
    old = kept * float(weight)
    total = old + 1.0 - kept
    average.mul_(old / total).add_(sum, alpha=(1.0 - kept) / (total * count))
    weight.fill_(total)
