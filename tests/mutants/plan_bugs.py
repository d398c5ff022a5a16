"""Bugs in what a plan adds up, and in how it keeps to the budget of memory."""

from dataclasses import replace
from typing import Any

from bug import caught_by, wrap
from sngd_compile.capture import stand_ins
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.inspection import explanation
from sngd_compile.plan import budget, cost, planner, totals

REHEARSAL = "tests/plan/test_rehearsal.py"
BUDGET, TOTALS = "tests/plan/test_budget.py", "tests/plan/test_totals.py"
COST = "tests/plan/test_cost.py"


@caught_by((BUDGET, "-k", "largest or before"))
def ranks_before_exact_factors() -> None:
    """Ranks are lowered before exact factors become sketches."""
    other = {budget.EXACT: budget.RANKS, budget.RANKS: budget.EXACT}

    def steps(original: Any, site: Any, spec: Any, stage: int) -> Any:
        return original(site, spec, other.get(stage, stage))

    wrap(budget, "_steps", steps)


@caught_by(("tests/plan/test_shared_memory.py", "-k", "trains_and_folds"))
def second_places_are_not_looked_for() -> None:
    """A weight that a list or a buffer holds too is reconstructed."""
    planner.held_twice = lambda model: {}


@caught_by((BUDGET, "-k", "halved"))
def diagonals_at_once() -> None:
    """A sketch that does not fit becomes a diagonal, whatever its rank."""
    budget._halved = lambda rank: []


@caught_by((TOTALS, "-k", "work or multiplies"))
def tables_multiply() -> None:
    """A table that is looked up counts as a product with all of its entries."""
    cost._looks_up = lambda site: False


@caught_by((TOTALS, "-k", "rows_are_those"))
def rows_of_all_steps() -> None:
    """The rows of all observed steps count as those of one."""

    def rows(original: Any, layer: Any) -> float:
        return float(layer.rows_seen) if original(layer) else 0.0

    wrap(totals, "rows_of", rows)


@caught_by((COST, "-k", "beside"))
def refreshes_of_every_step() -> None:
    """A refresh counts whole in each step."""

    def cost_of(original: Any, site: Any, layer: Any) -> Any:
        found = original(site, layer)
        return replace(found, added_by_refresh=float(site.refresh_work))

    wrap(explanation, "cost_of", cost_of)


@caught_by((COST, "-k", "left_out"))
def drawn_rows_are_all() -> None:
    """Rows that were drawn are taken for all that there were."""
    FisherLayer.may_miss_rows = False


@caught_by((REHEARSAL, "-k", "stays_plain or handed_on"))
def one_branch_only() -> None:
    """Every branch of a rehearsed forward is taken one way."""
    wrap(stand_ins.Paths, "decide", lambda original, self, site, answers: answers[0])


@caught_by((REHEARSAL, "-k", "child"))
def children_in_their_own_hands() -> None:
    """What a forward does with a weight of a child is not looked at."""
    planner.uses_elsewhere = lambda *arguments: {}
