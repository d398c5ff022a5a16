"""What looks wrong about a Fisher layer after some training, read off the state that it has.

Nothing is counted for this during training. Symbols: G the factor, of size D, g its eigenvalues;
lambda the damping; R the root.
"""

from __future__ import annotations

from math import isclose

from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.plan.records import noted_together
from sngd_compile.training.optimizer_hooks import optimizers_of, suits
from sngd_compile.training.sharding import squares_of
from sngd_compile.training.site import Site

ROWS_PER_INPUT = 2
"""Fewer rows for each direction that a kind resolves leave its smallest eigenvalues to chance."""

DAMPED_SHARE = 0.95
"""Share of the directions below the damping from which on little is left of the factor."""

LARGEST_CONDITION = 1e5
"""Of a damped factor: above it float32 does not resolve the root (docs/numerics.md)."""

LARGEST_AGE = 200
"""Steps; twice the default of `refresh_every`."""


def notes_of(site: Site) -> str:
    """Describe what looks wrong, and what to do; "" for a layer that is well or was not trained.

    Source: docs/tuning.md. Tested by tests/plan/test_diagnosis.py.
    """
    layer = site.fisher
    if layer.schedule.steps == 0:
        return _by_hand(site)
    found = [_unobserved(layer), _optimizer(site)]
    # Before the first refresh there is a factor of zeros, of which nothing can be said.
    if float(layer.average_weight):
        found += [_age(layer), _rows(layer), _damping(layer)]
    return noted_together(*found)


def _by_hand(site: Site) -> str:
    """Find a weight that learns although nothing counts its steps."""
    layer, before = site.fisher, site.fisher.ties.first_squares
    if before is None or not layer.rows_seen or float(layer.average_weight):
        return ""
    if optimizers_of(site.weight) or isclose(before, squares_of(site.weight) or 0.0):
        return ""
    return (
        "it was changed though no optimizer of torch.optim has stepped it, so its root is never "
        "renewed and steps are those of plain descent: use torch.optim.SGD, or derive the "
        "optimizer from torch.optim.Optimizer, or call sngd.refresh_ every "
        f"{layer.config.refresh_every} steps"
    )


def _unobserved(layer: FisherLayer) -> str:
    if not layer.unseen:
        return ""
    use = f": it enters {layer.unmatched}" if layer.unmatched else ""
    return f"no {layer.unseen} observed in {layer.schedule.steps} steps of plain descent{use}"


def _optimizer(site: Site) -> str:
    others = [o for o in optimizers_of(site.weight) if not suits(o, site.fisher)]
    if not others:
        return ""
    return f"{type(others[0]).__name__} steps it, so descent is not natural: use torch.optim.SGD"


def _age(layer: FisherLayer) -> str:
    age = layer.schedule.root_age
    if age <= LARGEST_AGE:
        return ""
    return f"its root is {age} steps old: lower refresh_every (now {layer.config.refresh_every})"


def _rows(layer: FisherLayer) -> str:
    kind, rows = kind_of(layer.spec), layer.rows_seen
    resolved = kind.resolved(layer.spec)
    if rows >= ROWS_PER_INPUT * resolved:
        return ""
    return (
        f"{rows} rows seen for {resolved} directions: too few for {kind.factor_words}; "
        "take larger batches, "
        f"lower observe_every (now {layer.config.observe_every}) or raise max_rows"
    )


def _damping(layer: FisherLayer) -> str:
    config, damping = layer.config, layer.damping
    setting = f"damping_rel_trace (now {config.damping_rel_trace:g})"
    if config.damping_abs * layer.scale > 0.1 * damping:
        setting += f" or damping_abs (now {config.damping_abs:g})"
    largest = kind_of(layer.spec).largest_eigenvalue(layer.factor.double() * layer.scale)
    if largest is None:
        return ""
    if bool((largest <= damping).all()):
        return (
            f"the damping, {damping:.2g}, is above the whole factor, so steps are those of plain "
            f"descent: lower {setting}"
        )
    if layer.spec.is_diagonal:
        return ""
    condition = least_condition(layer)
    if condition > LARGEST_CONDITION:
        return (
            f"its damped factor has a condition number of {condition:.0e} or more, so directions "
            f"without data take the longest steps: raise {setting}"
        )
    share = damped_share(layer)
    if share < DAMPED_SHARE:
        return ""
    return (
        f"damping dominates {share:.0%} of {layer.size} directions: too few rows, inputs that are "
        f"nearly constant or alike, or too much damping; {setting}"
    )


def damped_share(layer: FisherLayer) -> float:
    """Return the mean over directions of `lambda / (g + lambda)`, which is `lambda |R|^2 / D`.

    0: the damping is far below every eigenvalue of the factor; 1: far above all but a few.
    """
    return float(layer.damping * layer.root_buffers.squared_norm().mean() / layer.size)


def least_condition(layer: FisherLayer) -> float:
    """Bound the condition number of the damped factor from below, the largest of the groups.

    The largest eigenvalue of G is bounded by its kind, the least of the damped factor is at most
    `D / |R|^2`.
    """
    factor = layer.factor.double() * layer.scale
    largest = kind_of(layer.spec).large_eigenvalue(layer.spec, factor)
    inverse = layer.root_buffers.squared_norm() / layer.size
    return float(((largest + layer.damping) * inverse).max())
