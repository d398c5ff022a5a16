"""What is said, once and by name, of a layer that does not train as it should."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from sngd_compile.fisher.average import FASTEST, OUTLIER
from sngd_compile.fisher.layer import REJECTED, FisherLayer
from sngd_compile.fisher.next_roots import warn_once_of


def warn_of_rejected(fishers: Sequence[FisherLayer]) -> None:
    """Warn once by name when forward passes were left out because they were not finite."""
    if not fishers:
        return
    tallies = [fisher.tally[REJECTED] for fisher in fishers]
    counts = torch.stack([tally.to(tallies[0].device) for tally in tallies]).tolist()
    hit = [fisher for fisher, rejected in zip(fishers, counts, strict=True) if rejected]
    for fisher in hit:
        fisher.tally[REJECTED].zero_()
    warn_once_of(
        hit,
        "rejected",
        f"{max(counts)} forward pass(es) had inputs that are not finite, or too large to square. "
        "Nothing was observed from them, and training goes on with the roots that are there. Look "
        "for the first layer that overflows",
    )


def warn_of_outliers(fishers: Sequence[FisherLayer]) -> None:
    """Warn once of layers whose inputs were so large that what was seen of them was bounded."""
    hit = [fisher for fisher in fishers if fisher.outlier]
    if hit:
        most = max(fisher.outlier for fisher in hit)
        warn_once_of(
            hit,
            "outlier",
            f"the squares of the inputs since the last refresh were up to {most:.2g} times as "
            f"large as before. They count as {OUTLIER:g} times, in the first steps as "
            f"{FASTEST:g} times, so that an outlier does not stop the training. Look for the "
            "batch; inputs that have grown for good count in full at the next refresh",
        )


def warn_of_refused(changes: Mapping[FisherLayer, float]) -> None:
    """Warn once by name of new roots that would have changed the function."""
    if changes:
        largest = max(changes.values())
        warn_once_of(
            list(changes),
            "refused",
            f"a refresh would have changed the folded weights by up to {largest:.1e} of their "
            "norm: their dtype cannot express them in the new coordinates. The old roots stay, so "
            "steps there follow old statistics; raise damping_rel_trace or damping_abs, or keep "
            "the weights in a wider dtype",
        )


def warn_of_unobserved(fishers: Sequence[FisherLayer]) -> None:
    """Warn once, those alike together, of layers that train although no rule saw their use."""
    alike: dict[str, list[FisherLayer]] = defaultdict(list)
    for fisher in fishers:
        used = f": it enters {fisher.unmatched}, which has no rule" if fisher.unmatched else ""
        alike[f"no {fisher.unseen} has been observed although it receives gradients{used}"].append(
            fisher
        )
    for text, layers in alike.items():
        warn_once_of(
            layers,
            "unobserved",
            f"{text}. Its steps are plain gradient descent. Leave it out with overrides, or add a "
            "rule (docs/add_a_rule.md)",
        )
