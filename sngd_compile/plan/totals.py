"""What a plan costs in all, and how much of a network it covers.

Legend: N rows of a step that a weight multiplies, O outputs, K weights of one output, l columns of
a sketch, D the side of a factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch.nn import Parameter
from torch.nn.parameter import is_lazy

from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.plan.cost import own_work, root_work, rows_of
from sngd_compile.plan.records import Plan, Site

ASSUMED_ROWS = 256
"""Rows of a step that a weight is taken to multiply before any were observed."""


@dataclass(frozen=True)
class Totals:
    """The sums over a plan.

    Args:
        state_bytes: Memory of all Fisher layers.
        work_per_step: Multiply-adds that the roots add to a step, as a multiple of those of the
            plain step's weights; at `ASSUMED_ROWS` rows where `is_observed` is false.
        reconstructed_share: Elements that are reconstructed, over those that require a gradient.
        observed_share: Elements whose Fisher layer has seen rows, over those that are
            reconstructed.
        is_observed: Whether any Fisher layer has seen rows.
        is_trained: Whether there were optimizer steps, or rows.
        budget: The smallest `Config.memory_budget` of a weight, where the Fishers are above it.
    """

    state_bytes: int
    work_per_step: float
    reconstructed_share: float
    observed_share: float
    is_observed: bool
    is_trained: bool
    budget: int | None


def totals_of(plan: Plan, layers: Mapping[str, FisherLayer] | None = None) -> Totals:
    """Add up a plan.

    Args:
        plan: Of a model, or of a network.
        layers: Of a network, the Fisher layer by the name of its weight: what is there counts
            more than what was planned.

    Source: docs/reading_a_report.md. Tested by tests/plan/test_totals.py.
    """
    layers, sites = layers or {}, plan.sites
    # Several names may share a layer.
    distinct = {id(layer): layer for layer in layers.values()}.values()
    planned = sum(site.state_bytes for site in sites)
    memory = sum(buffer.nbytes for layer in distinct for buffer in layer.buffers())
    state = memory if layers else planned
    rows = {site.name: rows_of(layers.get(site.name)) for site in sites}
    counts = {site.name: site.parameter_count for site in sites}
    wanted = sum(p.numel() for p in _parameters(plan) if p.requires_grad and not is_lazy(p))
    seen = sum(counts[name] for name, number in rows.items() if number)
    budgets = [site.config.memory_budget for site in sites]
    bounded = state - sum(site.remainder_bytes for site in sites)  # no budget lowers those
    least = min(budgets, default=bounded)
    is_observed = any(rows.values())
    return Totals(
        state,
        _work(sites, rows if is_observed else dict.fromkeys(rows, ASSUMED_ROWS)),
        _share(sum(counts.values()), wanted),
        _share(seen, sum(counts.values())),
        is_observed,
        is_observed or any(layer.schedule.steps for layer in distinct),
        least if least < bounded else None,
    )


def _work(sites: list[Site], rows: Mapping[str, float]) -> float:
    """Return what the roots add to a step, over the `3 N O K` of each weight.

    Of one layer whose root acts on the cheaper side it is `4 l / (3 max(N, O))` for a sketch and
    `2 D / (3 max(N, O))` for a factor. A table, and a layer without rows, counts nothing.
    """
    added = plain = 0.0
    for site in sites:
        own = own_work(site, rows[site.name])
        plain += own
        added += root_work(site, rows[site.name]) if own else 0.0
    return added / plain if plain else 0.0


def _parameters(plan: Plan) -> Iterator[Parameter]:
    """Yield every parameter of the planned modules once."""
    found = (p for owner in plan.modules for p in owner.module.parameters())
    yield from {id(p): p for p in found}.values()


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
