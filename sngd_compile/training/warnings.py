"""What is said, once and by name, of a layer that does not train as it should."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sngd_compile.fisher.layer import REJECTED, FisherLayer
from sngd_compile.fisher.next_roots import warn_once


def warn_of_rejected(fishers: Sequence[FisherLayer]) -> None:
    """Warn once by name when forward passes were left out because they were not finite."""
    if not fishers:
        return
    tallies = [fisher.tally[REJECTED] for fisher in fishers]
    counts = torch.stack([tally.to(tallies[0].device) for tally in tallies]).tolist()
    for fisher, rejected in zip(fishers, counts, strict=True):
        if rejected:
            _warn_of_rejected(fisher, rejected)


def _warn_of_rejected(fisher: FisherLayer, rejected: int) -> None:
    fisher.tally[REJECTED].zero_()
    warn_once(
        fisher,
        "rejected",
        f"{rejected} forward pass(es) brought it inputs that are not finite, or too large to "
        "square; nothing was observed from them. Look for the first layer that overflows",
    )


def warn_of_unobserved(fisher: FisherLayer) -> None:
    """Warn once by name when a layer trains but what it needs never meets a rule."""
    used = f": it enters {fisher.unmatched}, which no rule understands" if fisher.unmatched else ""
    warn_once(
        fisher,
        "unobserved",
        f"no {fisher.unseen} has been observed although it receives gradients{used}. Its steps are "
        "plain gradient descent",
    )


def warn_of_frozen_bias(fisher: FisherLayer, weight: Tensor, bias: Tensor | None) -> None:
    """Warn once by name of a bias that was frozen after it joined a weight that is trained."""
    if bias is not None and weight.requires_grad and not bias.requires_grad:
        warn_once(
            fisher,
            "frozen",
            "its bias does not require a gradient and moves all the same: it shares a local "
            "Fisher with the weight. Freeze it before reconstruct, which then keeps it apart",
        )
