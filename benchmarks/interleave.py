"""Timing several trainees in turns, so that whatever else the machine does hits all of them."""

import itertools
import math
import random
import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

import sngd_compile as sngd
from contenders import Trainee

DEFAULT = sngd.Config()
CYCLE = DEFAULT.refresh_every
"""Steps after which everything periodic has happened: refreshes, observed steps, inverses."""

WARM_UP = math.ceil((DEFAULT.early_refreshes[-1] + 1) / DEFAULT.observe_every) * (
    DEFAULT.observe_every
)
"""Steps until only what is periodic is left."""

TURN = 10
"""Steps in a row: who trains has the caches of a processor to one network, after its first step."""


@dataclass
class Times:
    """Seconds of each step, the last loss, and what ended it early, if something did."""

    seconds: list[float] = field(default_factory=list)
    loss: float = math.nan
    failure: str = ""


@dataclass(frozen=True)
class Ratio:
    """Mean step time over the reference's, over all cycles and the extremes of single cycles."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, times: Times, reference: Times) -> "Ratio":
        """Compare whole cycles of steps that were taken in turns."""
        cycles, others = (
            np.reshape(turn.seconds, (-1, CYCLE)).mean(1) for turn in (times, reference)
        )
        single = cycles / others
        return cls(*map(float, (cycles.mean() / others.mean(), single.min(), single.max())))


def take_turns(
    trainees: Mapping[str, Trainee],
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    may_fail: Container[str] = (),
) -> dict[str, Times]:
    """Time `steps` steps of each, `TURN` in a row; who is first is drawn anew, batches are shared.

    Who may fail, as a package of others, takes no more turns after it has raised something.
    """
    shuffled = random.Random(0)
    times = {name: Times() for name in trainees}
    for first in range(0, steps, TURN):
        shared = list(itertools.islice(batches, min(TURN, steps - first)))
        running = [name for name in trainees if not times[name].failure]
        for name in shuffled.sample(running, len(running)):
            try:
                for inputs, labels in shared:
                    _time_step(trainees[name], inputs, labels, times[name])
            except Exception as error:
                if name not in may_fail:
                    raise
                times[name].failure = type(error).__name__
    return times


def _time_step(trainee: Trainee, inputs: Tensor, labels: Tensor, times: Times) -> None:
    """Take one step."""
    # Of this process alone: what others take from the machine is not counted.
    start = time.process_time()
    loss = trainee.step(inputs, labels)
    times.seconds.append(time.process_time() - start)
    times.loss = loss.item()


def percentiles(times: Times) -> tuple[float, float, float]:
    """Milliseconds that 20, 50 and 80 % of the steps stay within."""
    low, middle, high = np.percentile(times.seconds, (20, 50, 80)) * 1e3
    return float(low), float(middle), float(high)
