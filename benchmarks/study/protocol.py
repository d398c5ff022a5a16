"""One protocol for all: as many rates tried on one seed, then fresh seeds at the best of them."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from contenders import Contender
from study.race import Budget, Point, Run, begin, nothing, race
from tasks import Data, Task

TUNING_SEED = 0


@dataclass(frozen=True)
class Protocol:
    """Who takes part, how many rates each tries, how many fresh seeds count, who sets the goal.

    `after_step` is called after every step, off the clock.
    """

    contenders: Sequence[Contender]
    rates: int
    seeds: int
    budget: Budget
    reference: Contender
    after_step: Callable[[], None] = nothing


@dataclass(frozen=True)
class Tuned:
    """The training loss at each rate, in the order of the rates; infinite where it failed."""

    contender: Contender
    losses: dict[float, float]
    failure: str | None

    @property
    def best(self) -> float:
        """The rate of the lowest loss."""
        return min(self.losses, key=lambda rate: self.losses[rate])

    @property
    def at_edge(self) -> bool:
        """Whether a rate that was not tried might be better still."""
        return self.best in (min(self.losses), max(self.losses))


@dataclass(frozen=True)
class Outcome:
    """A contender's fresh runs at its best rate; none where every rate failed."""

    tuned: Tuned
    runs: list[Run]


@dataclass(frozen=True)
class Study:
    """All outcomes on one task, and the training losses that are the goals, one nearer, one far."""

    task: Task
    data: Data
    protocol: Protocol
    goals: tuple[float, float]
    outcomes: list[Outcome]


def seconds_for(steps: int, contender: Contender, task: Task, data: Data) -> float:
    """How long some steps take, from a tenth of them, the slow first ones left out."""
    run = begin(contender, contender.rates[0], task, data, TUNING_SEED)
    for _ in range(3):
        run.step()
    warm = run.seconds
    timed = max(5, steps // 10)
    for _ in range(timed):
        run.step()
    return (run.seconds - warm) / timed * steps


def tune(protocol: Protocol, task: Task, data: Data) -> list[Tuned]:
    """Try the first rates of each contender on one seed."""
    entries = [(one, rate) for one in protocol.contenders for rate in one.rates[: protocol.rates]]
    budget = protocol.budget.for_tuning
    runs = race(entries, task, data, TUNING_SEED, budget, protocol.after_step)
    tuned = []
    for contender in protocol.contenders:
        own = [run for run in runs if run.contender is contender]
        failed = all(run.failure for run in own)
        losses = {run.rate: run.loss for run in own}
        tuned.append(Tuned(contender, losses, own[0].failure if failed else None))
    return tuned


def study(protocol: Protocol, task: Task, data: Data, say: Callable[[str], None]) -> Study:
    """Tune on half the budget, run fresh seeds, and set the goals by the reference."""
    budget = protocol.budget
    say(f"{task.title}: {protocol.rates} rates of each, {budget.limit / 2:.3g} {budget.unit}")
    tuned = tune(protocol, task, data)
    entries = [(each.contender, each.best) for each in tuned if each.failure is None]
    runs: list[Run] = []
    for seed in range(TUNING_SEED + 1, TUNING_SEED + 1 + protocol.seeds):
        say(f"{task.title}: seed {seed}, {budget.limit:.3g} {budget.unit}")
        runs += race(entries, task, data, seed, budget, protocol.after_step)
    outcomes = [
        Outcome(each, [run for run in runs if run.contender is each.contender]) for each in tuned
    ]
    leaders = [run for run in runs if run.contender is protocol.reference]
    half, whole = (goal_of(leaders, budget.unit, end) for end in (budget.limit / 2, math.inf))
    return Study(task, data, protocol, (half, whole), outcomes)


def goal_of(runs: Sequence[Run], unit: str, end: float) -> float:
    """The loss that every one of some runs reaches within some seconds or steps."""
    return max(min(p.loss for p in run.points if getattr(p, unit) <= end) for run in runs)


def crossing(run: Run, goal: float) -> Point | None:
    """Where a run first reaches the goal, between two measurements in proportion to the loss."""
    before: Point | None = None
    for point in run.points:
        if point.loss <= goal:
            if before is None:
                return point
            part = (before.loss - goal) / (before.loss - point.loss)
            return Point(
                before.steps + part * (point.steps - before.steps),
                before.seconds + part * (point.seconds - before.seconds),
                goal,
            )
        before = point
    return None


def spread(values: Sequence[float | None], form: str) -> str:
    """The median, and in brackets the least and the largest; how many are missing, if any."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    if len(there) < len(values):
        return f"reached by {len(there)} of {len(values)}" if there else "not reached"
    middle, least, most = statistics.median(there), min(there), max(there)
    return f"{middle:{form}} ({least:{form}} to {most:{form}})"
