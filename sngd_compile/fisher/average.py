"""The running average of a local Fisher, corrected for its start from nothing."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

from torch import Tensor

OUTLIER = 25.0
"""Times the average's trace from which a mean is an outlier: activations five times as large."""

YOUNG = 0.25
"""Weight of an average up to which it may itself be an outlier's."""

FASTEST = 1e4
"""Times by which a young average grows or is lowered at once, at the most."""


def absorb_(
    average: Tensor,
    weight: Tensor,
    sum: Tensor,
    count: int,
    kept: float,
    trace: Callable[[Tensor], float],
    outlier: Tensor,
) -> float:
    """Move a sum into an average: `G <- a G + (1 - a) sum / count`, over the weights given so far.

    The first mean counts in full, and no identity or zero lingers. No batch can stop the training
    for long: a mean whose trace is more than `OUTLIER` times the average's, or `FASTEST` times that
    of a young one, counts as that many times, unless the one before was so too, for then the inputs
    have grown; and a young average that is `OUTLIER` times the mean is lowered to that.

    Args:
        average: G, corrected.
        weight: Of all means so far, a number; 0 before the first.
        sum: Of what was observed since the last time, shaped like G.
        count: How many it is the sum of, at least 1.
        kept: a, what the past still counts, in [0, 1).
        trace: Returns the trace of what is shaped like G.
        outlier: Whether the last mean was one, 0 or 1; written.

    Returns:
        How many times the average's trace the mean's was, where it was bounded; 0.0 elsewhere. What
        is not finite, as a sum that leaves its dtype, is left out: it would stay for good.

    Source: docs/method.md, estimation, bias correction and outliers. Law 6 tests it.
    """
    given = trace(sum) / count
    if not isfinite(given):
        return given
    old = kept * float(weight)
    total = old + 1.0 - kept
    bound, ratio = 1.0, 0.0
    if old > 0.0:
        known = trace(average)
        # In the first steps inputs often grow by far more, so a young average takes what it can be
        # lowered by again.
        most = FASTEST if float(weight) < YOUNG else OUTLIER
        if given > most * known > 0.0 and not outlier:
            bound, ratio = most * known / given, given / known
        elif old < YOUNG and known > OUTLIER * given > 0.0:
            average.mul_(max(OUTLIER * given / known, 1 / FASTEST))
    outlier.fill_(ratio > 0.0)
    average.mul_(old / total).add_(sum, alpha=bound * (1.0 - kept) / (total * count))
    weight.fill_(total)
    return ratio
