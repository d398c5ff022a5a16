"""Contenders train the same network on the same batches, each with the same budget.

Whoever has used least of its budget takes the next step, so whatever else the machine does hits
all of them alike. The clock is the processor time of this process, on one thread: on a quiet
machine that is what a watch would say. Batches and measurements are off it.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from contenders import Contender, Trainee
from tasks import Data, Examples, Task


@dataclass(frozen=True)
class Budget:
    """What each run may use, and how often it is measured on the way, evenly."""

    limit: float
    unit: Literal["seconds", "steps"]
    points: int = 40

    def used(self, run: "Run") -> float:
        """How much of it a run has used."""
        return run.seconds if self.unit == "seconds" else run.steps

    @property
    def for_tuning(self) -> "Budget":
        """Half of it, measured before and after."""
        return Budget(self.limit / 2, self.unit, points=1)


@dataclass(frozen=True)
class Point:
    """The training loss after some steps and seconds."""

    steps: float
    seconds: float
    loss: float


@dataclass
class Run:
    """One network in training; `failure` says why it ended before its budget did."""

    contender: Contender
    rate: float
    seed: int
    trainee: Trainee
    batches: Iterator[Examples]
    steps: int = 0
    seconds: float = 0.0
    points: list[Point] = field(default_factory=list)
    failure: str | None = None
    score: float = math.nan

    def step(self) -> None:
        """Take one step, on the clock."""
        inputs, targets = next(self.batches)
        start = time.process_time()
        self.trainee.step(inputs, targets)
        self.seconds += time.process_time() - start
        self.steps += 1

    @property
    def loss(self) -> float:
        """The training loss in the end; infinite for a run that failed."""
        return math.inf if self.failure else self.points[-1].loss


def begin(contender: Contender, rate: float, task: Task, data: Data, seed: int) -> Run:
    """A run that has not taken a step."""
    trainee = contender.prepare(task.model(seed), task.recipe(rate))
    return Run(contender, rate, seed, trainee, task.batches(data, seed))


def nothing() -> None:
    """Do nothing after a step."""


def race(
    entries: Sequence[tuple[Contender, float]],
    task: Task,
    data: Data,
    seed: int,
    budget: Budget,
    after_step: Callable[[], None] = nothing,
) -> list[Run]:
    """Run contenders at their rates until each has used the budget; those that fail drop out.

    What is called after every step is off the clock.
    """
    with warnings.catch_warnings():
        if any(contender.package for contender, _ in entries):
            warnings.simplefilter("ignore")
        runs = [begin(contender, rate, task, data, seed) for contender, rate in entries]
        judge = Judge(task, data)
        while racing := [run for run in runs if _goes_on(run, budget)]:
            run = min(racing, key=budget.used)
            try:
                if budget.used(run) >= len(run.points) * budget.limit / budget.points:
                    judge.measure(run)
                run.step()
                after_step()
            except Exception as error:
                if run.contender.package is None:
                    raise
                run.failure = f"fails: {type(error).__name__}"
        for run in runs:
            judge.finish(run)
    return runs


def _goes_on(run: Run, budget: Budget) -> bool:
    return run.failure is None and budget.used(run) < budget.limit


class Judge:
    """Measures runs on a plain network of its own: no hooks fire, and no mode changes."""

    def __init__(self, task: Task, data: Data) -> None:
        self.task, self.data = task, data
        self.plain = task.model(0)

    def take_over(self, run: Run) -> None:
        """Give the plain network the weights that the run has now."""
        finished = run.trainee.finish(run.trainee.network)
        self.plain.load_state_dict(finished.state_dict())

    def measure(self, run: Run) -> None:
        """Add a point; a run whose loss is no number any more has diverged."""
        self.take_over(run)
        loss = self.task.loss(self.plain, self.data.train)
        if math.isfinite(loss):
            run.points.append(Point(run.steps, run.seconds, loss))
        else:
            run.failure = "diverges"

    def finish(self, run: Run) -> None:
        """Measure a last time, and the score on the test data."""
        if run.failure is None:
            self.measure(run)
            self.take_over(run)
            run.score = self.task.score(self.plain, self.data.test)
