"""What a layer multiplies in a step, and what its Fisher layer adds to that.

Legend: N rows of a step that a weight multiplies, O outputs, K weights of one output, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.kinds.diagonal import Diagonal
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.plan.records import Site
from sngd_compile.rules import RULES


@dataclass(frozen=True)
class LayerCost:
    """Multiply-adds of one layer in a step, on average over many steps; None where not known.

    Args:
        rows_per_step: N, the mean of the rows observed in a step.
        is_at_most: Whether `Config.max_rows` may have left rows out. There are more then: the
            layer's own work is larger, and the ratio at most `added_ratio`.
        own_work: `3 N G O K`, forward and backward; 0 of a table, of which rows are taken.
        added_by_root: The fold and its gradient, on the cheaper side.
        added_by_observation: An observed step's, over `Config.observe_every`.
        added_by_refresh: A refresh's, over `Config.refresh_every`.
    """

    rows_per_step: float | None
    is_at_most: bool
    own_work: float | None
    added_by_root: float | None
    added_by_observation: float | None
    added_by_refresh: float

    @property
    def added_ratio(self) -> float | None:
        """What is added over the layer's own work; None where one is not known, or is nothing."""
        if not self.own_work or self.added_by_root is None or self.added_by_observation is None:
            return None
        added = self.added_by_root + self.added_by_observation + self.added_by_refresh
        return added / self.own_work


def cost_of(site: Site, layer: FisherLayer | None) -> LayerCost:
    """Return what a layer costs at the rows that its Fisher layer has observed."""
    spec, config = site.spec, site.config
    refresh = site.refresh_work / config.refresh_every
    rows = rows_of(layer)
    if layer is None or not rows:
        return LayerCost(None, False, None, None, None, refresh)
    of_one_group = kind_of(spec).observation_work(spec, round(rows))
    observation = (spec.layout.groups or 1) * of_one_group / config.observe_every
    root, own = root_work(site, rows), own_work(site, rows)
    return LayerCost(rows, layer.may_miss_rows, own, root, observation, refresh)


def own_work(site: Site, rows: float) -> float:
    """Return what the weight itself multiplies, forward and backward, for so many rows."""
    return 0.0 if _looks_up(site) else 3 * rows * prod(site.layout.matrix)


def root_work(site: Site, rows: float) -> float:
    """Return what the root adds to a step of so many rows.

    A matrix that multiplies rows may leave it to them, where they are fewer than its outputs.
    """
    if len(site.layout.view) == 2:
        return site.step_work * rows / max(rows, site.layout.outputs)
    return float(site.step_work)


def rows_of(layer: FisherLayer | None) -> float:
    """Return how many rows of a step a layer has observed on average; 0.0 where there are none."""
    if layer is None or layer.factor.is_meta:
        return 0.0
    return layer.rows_per_step


def _looks_up(site: Site) -> bool:
    """Say whether a weight is a table, of which rows are taken and nothing is multiplied."""
    if site.rule in RULES:
        is_table: bool = RULES[site.rule].kind == Diagonal.name
        return is_table
    return site.spec.is_diagonal and site.layout.is_transposed
