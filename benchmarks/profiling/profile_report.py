"""What a profile shows: a table for the terminal and a page, each time beside its floor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from steps.step_report import conditions, table_lines
from study.study_report import load_average
from workloads import Workload

EXPLANATION = """\
`make bench-profile`: median milliseconds of each part of a step, beside SGD's plain step. An
*observed* step adds up statistics, a *refresh* renews the roots after its step, a *steady* step
does neither. In brackets the floor: the multiply-adds of
[method.md](../../docs/method.md#9-cost-and-the-choice-of-association) at the speed of a product of
two 512 x 512 matrices, at its best {rate:.1f} thousand million multiply-adds a second. Products of
other shapes are slower, and what is no product has no floor. A refresh has the multiply-adds that
`explain` prints. The profiler makes short operations dearer. Allocations are those of one step,
with their sum; what was freed is taken again. Load of the machine (processes that want to run, mean
of a minute) in the end: {load}.
"""


@dataclass(frozen=True)
class Profile:
    """One kind of step: milliseconds of its parts, floors of some, allocations and their bytes."""

    parts: Mapping[str, float]
    floors: Mapping[str, float]
    allocations: float
    allocated: float

    def cell(self, name: str) -> str:
        """A part's time, with its floor."""
        floor = f" ({self.floors[name]:.2f})" if name in self.floors else ""
        return f"{self.parts.get(name, 0.0):.2f}{floor}"

    def sums(self) -> list[str]:
        """The whole step: time and floor, allocations, their sum."""
        whole = f"{sum(self.parts.values()):.2f} ({sum(self.floors.values()):.2f})"
        return [whole, f"{self.allocations:.0f}", f"{self.allocated / 2**20:.1f}"]


SUMS = ("sum, ms", "allocations", "allocated, MiB")


def rows(kinds: Mapping[str, Profile]) -> list[list[str]]:
    """One part a row, the largest of a steady step first; then the sums."""
    names = {name for profile in kinds.values() for name in profile.parts}
    ordered = sorted(names, key=lambda name: -kinds["steady"].parts.get(name, 0.0))
    parts = [[name, *(profile.cell(name) for profile in kinds.values())] for name in ordered]
    sums = zip(SUMS, *(profile.sums() for profile in kinds.values()), strict=True)
    return [*parts, *(list(row) for row in sums)]


def title(workload: Workload) -> str:
    """The workload in words."""
    return f"{workload.name}, batch {workload.batch_size}"


def table(workload: Workload, kinds: Mapping[str, Profile]) -> Table:
    """The parts for the terminal."""
    shown = Table("ms (floor)", *kinds, title=title(workload))
    for row in rows(kinds):
        shown.add_row(*row, end_section=row[0] not in SUMS[1:])
    for column in shown.columns[1:]:
        column.justify = "right"
    return shown


def save(
    profiles: Sequence[tuple[Workload, Mapping[str, Profile]]],
    rate: float,
    steps: int,
    folder: Path,
) -> Path:
    """Write `profile_step.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# Where the time of a step goes", ""]
    lines += [", ".join(f"{name}: {value}" for name, value in conditions(steps).items()), ""]
    lines += [EXPLANATION.format(rate=rate / 1e9, load=load_average())]
    for workload, kinds in profiles:
        header = ["ms (floor)", *kinds]
        lines += [f"## {title(workload)}", "", *table_lines(header, rows(kinds)), ""]
    path = folder / "profile_step.md"
    path.write_text("\n".join(lines))
    return path
