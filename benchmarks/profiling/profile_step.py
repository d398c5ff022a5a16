"""Where the time of a step goes: a plain one, a steady one, an observed one, one that refreshes.

make bench-profile ARGS="--steps 100"
"""

import os
import statistics
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

import contenders
import sngd_compile as sngd
from interleave import CYCLE, WARM_UP
from profiling.profile_report import Profile, save, table
from profiling.step_floor import multiply_adds_a_second, work_by_group
from sngd_compile.training import optimizer_hooks as optimizers
from tasks import TASKS, of_task
from workloads import WORKLOADS, Workload

RESULTS = Path(__file__).parents[1] / "results"

LABELLED: tuple[tuple[Any, str, str], ...] = (
    (optimizers, "_look_at_gradients", "guard"),
    (optimizers, "refresh_sites", "refresh"),
    (contenders, "clip_grad_norm_", "clipping"),
)
"""Functions to label in a profile: where their callers find them, their names, their groups."""

OPERATIONS = {
    "sngd::observe_": "observation",
    "aten::convolution": "convolutions",
    "aten::convolution_backward": "convolutions",
    "aten::mm": "matrix products",
    "aten::addmm": "matrix products",
    "aten::bmm": "matrix products",
}
GROUPS = OPERATIONS | {label: label for _, _, label in LABELLED}
OPTIMIZER, REST = "optimizer", "elementwise, loss, Python"
KINDS = ("plain", "steady", "observed", "refresh")

Milliseconds = dict[str, float]

STUDIED = ("resnet", "gpt", "autoencoder")
"""Tasks of the study whose steps are many small operations."""


@contextmanager
def labels() -> Iterator[None]:
    """Name parts of the step in the profile, as long as the context lasts."""

    def labelled(function: Callable[..., Any], group: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with record_function(group):
                return function(*args, **kwargs)

        return call

    originals = [getattr(place, name) for place, name, _ in LABELLED]
    try:
        for (place, name, group), original in zip(LABELLED, originals, strict=True):
            setattr(place, name, labelled(original, group))
        yield
    finally:
        for (place, name, _), original in zip(LABELLED, originals, strict=True):
            setattr(place, name, original)


def place_of(event: FunctionEvent) -> tuple[str, str]:
    """The step around an event, and the outermost group: all of a refresh is refresh."""
    group, outermost = REST, event
    parent: FunctionEvent | None = event
    while parent is not None:
        outermost = parent
        if parent.name in GROUPS:
            group = GROUPS[parent.name]
        elif parent.name.startswith("Optimizer.step") and group == REST:
            group = OPTIMIZER
        parent = parent.cpu_parent
    return outermost.name, group


@dataclass
class Step:
    """One profiled step: milliseconds of each group, allocations, their bytes."""

    groups: Milliseconds = field(default_factory=lambda: defaultdict(float))
    allocations: int = 0
    allocated: int = 0


def profiled(workload: Workload, contender: contenders.Contender, steps: int) -> list[Step]:
    """Train past the warm-up, then profile every further step.

    An event counts with the time that the events inside it leave.
    """
    trainee, batches = (
        contender.prepare(workload.model(), contenders.Recipe(0.03, workload.criterion)),
        workload.batches(),
    )
    for _ in range(WARM_UP):
        trainee.step(*next(batches))
    taken = {f"step {i}": Step() for i in range(steps)}
    with (
        labels(),
        profile(
            activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as profiler,
    ):
        for name in taken:
            inputs, targets = next(batches)
            with record_function(name):
                trainee.step(inputs, targets)
    for event in profiler.events():
        name, group = place_of(event)
        if name in taken:
            taken[name].groups[group] += event.self_cpu_time_total / 1e3
    count_allocations(profiler, taken)
    return list(taken.values())


def count_allocations(profiler: profile, taken: Mapping[str, Step]) -> None:
    """Give every allocation to the step in whose time it fell."""
    # As of torch 2.13 only the private results have them one by one.
    events: list[Any] = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    spans = sorted((e.start_ns(), e.end_ns(), e.name()) for e in events if e.name() in taken)
    starts = [start for start, _, _ in spans]
    for event in events:
        if event.name() == "[memory]" and event.nbytes() > 0:
            index = bisect_right(starts, event.start_ns()) - 1
            if index >= 0 and event.start_ns() <= spans[index][1]:
                step = taken[spans[index][2]]
                step.allocations += 1
                step.allocated += event.nbytes()


def kind_of(step: int) -> str:
    """What is due in a step of the default configuration."""
    config = sngd.Config()
    if config.is_refreshed(step + 1):
        return "refresh"
    return "observed" if config.is_observed(step) else "steady"


def breakdown(workload: Workload, steps: int, rate: float) -> dict[str, Profile]:
    """The medians of each kind of step; `rate` is in multiply-adds a second."""
    samples: dict[str, list[Step]] = {kind: [] for kind in KINDS}
    samples["plain"] = profiled(workload, contenders.REFERENCE, min(steps, CYCLE))
    for offset, step in enumerate(profiled(workload, contenders.SNGD, steps)):
        samples[kind_of(WARM_UP + offset)].append(step)
    return {
        kind: summary(taken, work_by_group(workload, kind), rate)
        for kind, taken in samples.items()
        if taken
    }


def summary(samples: Sequence[Step], work: Mapping[str, int], rate: float) -> Profile:
    """The median of each group over the steps of one kind."""
    names = {name for step in samples for name in step.groups}
    return Profile(
        {name: statistics.median(step.groups[name] for step in samples) for name in names},
        {name: 1e3 * count / rate for name, count in work.items()},
        statistics.median(step.allocations for step in samples),
        statistics.median(step.allocated for step in samples),
    )


def main(
    steps: Annotated[int, typer.Option(min=2, help="Profiled steps.")] = 2 * CYCLE,
    output: Annotated[Path, typer.Option(help="Folder for the page.")] = RESULTS,
) -> None:
    """Show where the time of a step goes, profiled on one thread."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports every start and stop
    contenders.limit_to_one_thread()
    rate = multiply_adds_a_second()
    studied = [of_task(task) for task in TASKS if task.name in STUDIED]
    profiles = [(w, breakdown(w, steps, rate)) for w in (*WORKLOADS, *studied)]
    for workload, kinds in profiles:
        Console().print(table(workload, kinds))
    print(f"The page: {save(profiles, rate, steps, output)}")


if __name__ == "__main__":
    typer.run(main)
