"""What the step timing shows: a table for the terminal, a Markdown table, a JSON file."""

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table

from interleave import CYCLE, TURN, Ratio, Times, percentiles
from steps.memory import LayerMemory

HEADER = ("step, ms", "p20", "p50", "p80", "mean", "mean over SGD's", "bar")

EXPLANATION = f"""\
All take turns of {TURN} steps in one process, no one clips gradients, optimizers of torch that have
a fused form are in it; what is timed is the processor time of that process. Everyone's learning
rate is so small that all networks have the same activations, and subnormal numbers are flushed to
zero: what a pooling or a product takes hangs on the numbers. The mean is over whole cycles of
{CYCLE} steps, so it holds its share of observed steps and of refreshes; in brackets the least and
the largest ratio of a single cycle. Other second-order methods renew inverses every 10 steps."""


@dataclass(frozen=True)
class Row:
    """How one contender did, or why it did not run; a bar is the most its ratio may be."""

    contender: str
    milliseconds: tuple[float, float, float] | None = None
    mean: float | None = None
    ratio: Ratio | None = None
    bar: float | None = None
    not_run: str | None = None

    @classmethod
    def of(cls, contender: str, times: Times, reference: Times, bar: float | None) -> "Row":
        """Summarise whole cycles of steps."""
        return cls(
            contender,
            percentiles(times),
            1e3 * sum(times.seconds) / len(times.seconds),
            Ratio.of(times, reference),
            bar,
        )

    def cells(self) -> list[str]:
        """Return the cells under `HEADER`."""
        if not (self.milliseconds and self.mean and self.ratio):
            return [self.contender, *[""] * 4, self.not_run or "", ""]
        numbers = [f"{number:.1f}" for number in (*self.milliseconds, self.mean)]
        return [self.contender, *numbers, show(self.ratio), self.verdict()]

    def verdict(self) -> str:
        """Say whether the bar is met, if there is one."""
        if self.bar is None or self.ratio is None:
            return ""
        return verdict(self.ratio.mean, self.bar)


def verdict(ratio: float, bar: float) -> str:
    """Say whether a bar is met, and which."""
    return f"{'pass' if ratio <= bar else 'miss'} (<= {bar:g})"


@dataclass(frozen=True)
class Result:
    """All rows of one workload."""

    workload: str
    batch_size: int
    rows: list[Row]
    memory: list[LayerMemory]

    @property
    def title(self) -> str:
        """The workload in words."""
        return f"{self.workload}, batch {self.batch_size}"


def show(ratio: Ratio) -> str:
    """A ratio with the extremes of its cycles."""
    return f"{ratio.mean:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def step_table(result: Result) -> Table:
    """The rows as a table for the terminal."""
    table = Table(*HEADER, title=result.title)
    for row in result.rows:
        table.add_row(*row.cells())
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def conditions(steps: int) -> dict[str, str | int]:
    """What was measured on, and how long."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "steps": steps,
    }


def processor() -> str:
    """The processor's model, where the system tells."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def table_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]


def markdown(results: Sequence[Result], steps: int) -> str:
    """The rows of all workloads, and under what conditions they came about."""
    measured = ", ".join(f"{name}: {value}" for name, value in conditions(steps).items())
    lines = ["# Step time", "", measured, "", EXPLANATION, ""]
    for result in results:
        rows = [row.cells() for row in result.rows]
        lines += [f"## {result.title}", "", *table_lines(HEADER, rows), ""]
    return "\n".join(lines)


def save(results: Sequence[Result], steps: int, folder: Path) -> list[Path]:
    """Write `step_time.json` and `step_time.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**conditions(steps), "workloads": [asdict(result) for result in results]}
    texts = {"json": json.dumps(content, indent=2) + "\n", "md": markdown(results, steps)}
    paths = []
    for suffix, text in texts.items():
        paths.append(folder / f"step_time.{suffix}")
        paths[-1].write_text(text)
    return paths
