"""Where the time of a step goes: a plain one, a steady one, an observed one, one that refreshes."""

import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

import contenders
import sngd_compile as sngd
from interleave import CYCLE, WARM_UP
from sngd_compile.runtime import optimizers
from workloads import WORKLOADS, Workload

LABELLED: tuple[tuple[Any, str, str], ...] = (
    (optimizers, "_drop_non_finite", "guard"),
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


def profiled(workload: Workload, contender: contenders.Contender, steps: int) -> list[Milliseconds]:
    """Train past the warm-up, then return the milliseconds of each group in each further step.

    An event counts with the time that the events inside it leave.
    """
    trainee, batches = (
        contender.prepare(workload.model(), contenders.Recipe(0.03)),
        workload.batches(),
    )
    for _ in range(WARM_UP):
        trainee.step(*next(batches))
    taken: dict[str, Milliseconds] = {f"step {i}": defaultdict(float) for i in range(steps)}
    with labels(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for name in taken:
            inputs, targets = next(batches)
            with record_function(name):
                trainee.step(inputs, targets)
    for event in profiler.events():
        name, group = place_of(event)
        if name in taken:
            taken[name][group] += event.self_cpu_time_total / 1e3
    return list(taken.values())


def kind_of(step: int) -> str:
    """What is due in a step of the default configuration."""
    config = sngd.Config()
    if config.is_refreshed(step + 1):
        return "refresh"
    return "observed" if config.is_observed(step) else "steady"


def breakdown(workload: Workload, steps: int) -> dict[str, Milliseconds]:
    """The median milliseconds of each group, for each kind of step."""
    samples: dict[str, list[Milliseconds]] = {kind: [] for kind in KINDS}
    samples["plain"] = profiled(workload, contenders.REFERENCE, min(steps, CYCLE))
    for offset, groups in enumerate(profiled(workload, contenders.SNGD, steps)):
        samples[kind_of(WARM_UP + offset)].append(groups)
    return {kind: medians(taken) for kind, taken in samples.items() if taken}


def medians(samples: list[Milliseconds]) -> Milliseconds:
    """The median of each group."""
    names = {name for groups in samples for name in groups}
    return {name: statistics.median(groups[name] for groups in samples) for name in names}


def breakdown_table(workload: Workload, kinds: dict[str, Milliseconds]) -> Table:
    """One group a row, the largest of a steady step first."""
    table = Table("ms", *kinds, title=f"{workload.name}, batch {workload.batch_size}")
    names = {name for groups in kinds.values() for name in groups}
    for name in sorted(names, key=lambda name: -kinds["steady"].get(name, 0.0)):
        table.add_row(name, *(f"{groups.get(name, 0.0):.2f}" for groups in kinds.values()))
    table.add_section()
    table.add_row("sum", *(f"{sum(groups.values()):.2f}" for groups in kinds.values()))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def main(
    steps: Annotated[int, typer.Option(min=2, help="Profiled steps.")] = 2 * CYCLE,
) -> None:
    """Print where the time of a step goes, profiled on one thread."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports every start and stop
    contenders.limit_to_one_thread()
    for workload in WORKLOADS:
        Console().print(breakdown_table(workload, breakdown(workload, steps)))


if __name__ == "__main__":
    typer.run(main)
