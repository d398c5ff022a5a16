"""The Fisher layers of a network together keep to `Config.memory_budget`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush

from torch import Tensor

from sngd_compile.config import RANK
from sngd_compile.fisher.kinds.diagonal import Diagonal
from sngd_compile.fisher.kinds.shared import Shared, exact_or_sketch
from sngd_compile.fisher.kinds.sketch import Sketch, sketched
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.plan.decision import Decision
from sngd_compile.plan.records import Site, bytes_text, fisher_text, noted_together, state_bytes

LEAST_RANK = 8
"""Columns below which a sketch is not lowered: its diagonal is the next thing that is smaller."""

EXACT, RANKS, LAST = range(3)
"""What gives way, in this order: exact factors, then ranks of sketches, then sketches at all."""


def keep_to_budget(decisions: Mapping[Tensor, Decision]) -> dict[Tensor, Decision]:
    """Lower the largest local Fishers until all together fit.

    A weight gives way while the Fisher layers of all weights together are above the budget of its
    own configuration. First exact factors become sketches of the configured rank, then ranks are
    halved down to `LEAST_RANK`, then diagonals remain; in each of the three the largest state
    first, of equal ones the first in the model. What diagonals exceed stays above.

    Args:
        decisions: Of every weight of a network, or of a compiled frame.

    Returns:
        The decisions, with a note on each weight that gave way.

    Source: docs/decisions/0026-budget.md. Tested by tests/plan/test_budget.py.
    """
    given = [decision.site for decision in decisions.values()]
    specs = _lowered(given)
    return {
        weight: replace(decision, site=_noted(decision.site, spec))
        for (weight, decision), spec in zip(decisions.items(), specs, strict=True)
    }


def _lowered(sites: Sequence[Site]) -> list[FisherSpec]:
    """Return the local Fisher that is left to each site."""
    specs = [site.spec for site in sites]
    total = sum(map(state_bytes, specs))
    for stage in (EXACT, RANKS, LAST):
        heap = [(-state_bytes(spec), index) for index, spec in enumerate(specs)]
        heapify(heap)
        while heap:
            size, index = heappop(heap)
            site = sites[index]
            # The total only falls: a site whose budget is kept is not looked at again.
            if total <= site.config.memory_budget:
                continue
            steps = _steps(site, specs[index], stage)
            smaller = next((spec for spec in steps if state_bytes(spec) < -size), None)
            if smaller is not None:
                specs[index] = smaller
                total += size + state_bytes(smaller)
                heappush(heap, (-state_bytes(smaller), index))
    return specs


def _steps(site: Site, spec: FisherSpec, stage: int) -> list[FisherSpec]:
    """List what may stand in for a local Fisher at one stage, the finest first.

    Some of it may be no smaller: a sketch of a narrow layer has more numbers than its factor.
    """
    if spec.is_diagonal:
        return []
    full, rank = _of(site, Shared.name), site.config.rank or RANK
    if stage == EXACT:
        sketch = sketched(full, rank)
        return [] if spec.kind == Sketch.name else [exact_or_sketch(full, site.config), sketch]
    if stage == RANKS:
        return [sketched(full, columns) for columns in _halved(min(rank, spec.size))]
    return [_of(site, Diagonal.name)]


def _of(site: Site, kind: str) -> FisherSpec:
    """Describe the local Fisher of another kind of the same weight."""
    spec = site.spec
    return FisherSpec.of(spec.layout, spec.has_bias, kind, site.config, spec.dtype)


def _halved(rank: int) -> list[int]:
    """List the ranks below one, each half of the last, down to the least."""
    ranks = []
    while rank > LEAST_RANK:
        rank = max(rank // 2, LEAST_RANK)
        ranks.append(rank)
    return ranks


def _noted(site: Site, spec: FisherSpec) -> Site:
    """Return the site with another local Fisher, and a note of what was done and what to set."""
    if spec == site.spec:
        return site
    note = (
        f"{fisher_text(site.spec)} ({bytes_text(state_bytes(site.spec))}) gave way to "
        f"{fisher_text(spec)} ({bytes_text(state_bytes(spec))}): all Fisher layers together were "
        f"above memory_budget = {site.config.memory_budget:,} bytes; raise it, or leave layers out "
        "with overrides"
    )
    # What another kind noted of itself, as the activation of units, is no longer so.
    kept = site.note if site.kind in (Shared.name, Sketch.name) else ""
    return replace(site, spec=spec, note=noted_together(kept, note))
