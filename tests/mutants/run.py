"""Plant every known bug, one at a time, and see that a test catches it.

    python tests/mutants/run.py [--tests-pass] [NAME ...]

Every bug gets a process of its own, in which the tests that it names run up to the first failure.
The exit status is 1 if a bug survives, if it fails a test by an error instead of a wrong number (it
then no longer fits the library), or if the same tests fail without any bug. With --tests-pass they
are not run without one: they have just passed.
"""

import gc
import io
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import hypothesis  # noqa: F401  # on behalf of the children, as torch is
import pytest
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

import diagnosis_bugs
import fisher_kind_bugs
import fuzz_bugs
import inspection_bugs
import layer_bugs
import metrics_bugs
import output_bugs
import pass_bugs
import plan_bugs
import process_bugs
import root_bugs
import statistics_bugs
import step_bugs
import trainer_bugs
import verify_bugs
from bug import BUGS, Bug

__all__ = [
    "diagnosis_bugs",
    "fisher_kind_bugs",
    "fuzz_bugs",
    "inspection_bugs",
    "layer_bugs",
    "metrics_bugs",
    "output_bugs",
    "pass_bugs",
    "plan_bugs",
    "process_bugs",
    "root_bugs",
    "statistics_bugs",
    "step_bugs",
    "trainer_bugs",
    "verify_bugs",
]

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = min(8, os.cpu_count() or 1)
# Imports are shared with the children: half a bug's time would go into importing torch.
FORK = multiprocessing.get_context("fork")
OPTIONS = [
    "-q",
    "-x",
    "--tb=no",
    "--no-header",
    "-m",
    "not nightly",
    "-p",
    "no:cacheprovider",
]


@dataclass(frozen=True)
class Run:
    """Tests to run, with a bug planted or without."""

    tests: tuple[str, ...]
    bug: Bug | None = None

    @property
    def subject(self) -> str:
        """Name it in the table."""
        return f"(none) {' '.join(self.tests)}" if self.bug is None else self.bug.name


class FirstFailure:
    """A pytest plugin that keeps which test failed first, and whether by a wrong number."""

    test, wrong = "", False

    def pytest_exception_interact(self, node: pytest.Item, call: pytest.CallInfo) -> None:
        """Note the failure; pytest stops at it."""
        self.test, error = node.name, call.excinfo.value
        self.wrong = isinstance(error, AssertionError)
        if isinstance(error, BaseExceptionGroup):  # the laws of one case, those that do not hold
            self.test, self.wrong = error.message, error.subgroup(AssertionError) is not None


@dataclass(frozen=True)
class Report:
    """What a child says.

    Args:
        status: Of pytest.
        test: That failed first.
        wrong: Whether it failed by a wrong number.
        printed: The output.
        seconds: It took so long.
    """

    status: int
    test: str
    wrong: bool
    printed: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    run: Run
    good: bool
    verdict: str
    seconds: float


def in_child(run: Run, sender: Connection) -> None:
    """Plant the bug, run the tests, send a report."""
    gc.freeze()  # it need not look through what it inherits
    start = time.perf_counter()
    printed, first = io.StringIO(), FirstFailure()
    with redirect_stdout(printed), redirect_stderr(printed):
        if run.bug is not None:
            run.bug.plant()
        status = int(pytest.main([*OPTIONS, *run.tests], plugins=[first]))
    seconds = time.perf_counter() - start
    sender.send(Report(status, first.test, first.wrong, printed.getvalue(), seconds))


def judge(run: Run, report: Report) -> Outcome:
    """Tell a catch from a survivor and from a bug that does not fit any more."""
    if run.bug is None:
        good, verdict = report.status == 0, "pass" if report.status == 0 else "fail without a bug"
    elif report.status == 0:
        good, verdict = False, f"SURVIVED: {run.bug.description}"
    elif report.wrong:
        return Outcome(run, True, report.test, report.seconds)
    else:
        good, verdict = False, "an error, no wrong number"
    shown = verdict if good else f"{verdict}\n{report.printed}"
    return Outcome(run, good, shown, report.seconds)


def outcomes(runs: Sequence[Run]) -> Iterator[Outcome]:
    """Fork a process for every run, as many at a time as there are processors."""
    waiting = list(runs)
    active: dict[Connection, Run] = {}
    while waiting or active:
        while waiting and len(active) < PROCESSES:
            run = waiting.pop(0)
            receiver, sender = FORK.Pipe(duplex=False)
            FORK.Process(target=in_child, args=(run, sender)).start()
            sender.close()
            active[receiver] = run
        for receiver in wait(list(active)):
            run = active.pop(receiver)
            try:
                report = receiver.recv()
            except EOFError:
                report = Report(-1, "", False, "the process died", 0.0)
            yield judge(run, report)


def table_of(results: Sequence[Outcome]) -> Table:
    """Lay the outcomes out, in the order of the bugs."""
    table = Table("", "planted bug", "caught by", "seconds")
    for result in results:
        mark = "[green]ok[/]" if result.good else "[red]BAD[/]"
        table.add_row(mark, result.run.subject, escape(result.verdict), f"{result.seconds:.1f}")
    return table


def main(arguments: Sequence[str]) -> int:
    """Print a table and return the exit status."""
    tests_pass = "--tests-pass" in arguments
    names = [argument for argument in arguments if argument != "--tests-pass"]
    unknown = sorted(set(names) - BUGS.keys())
    if unknown:
        print(f"no such bug: {', '.join(unknown)}; known: {', '.join(BUGS)}", file=sys.stderr)
        return 2
    os.chdir(ROOT)
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1)])  # its first use imports much
    # What other packages add to pytest would be imported for each bug, longer than its tests take.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    start = time.perf_counter()
    bugs = [BUGS[name] for name in names or BUGS]
    runs = [] if tests_pass else [Run(t) for t in dict.fromkeys(bug.tests for bug in bugs)]
    runs += [Run(bug.tests, bug) for bug in bugs]
    console = Console(width=None if sys.stdout.isatty() else 150)
    results = []
    # No refreshing thread: a process with threads must not fork.
    with Progress(console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("Planting bugs", total=len(runs))
        for outcome in outcomes(runs):
            results.append(outcome)
            progress.advance(task)
            progress.refresh()
    console.print(table_of(sorted(results, key=lambda result: runs.index(result.run))))
    good = sum(result.good for result in results)
    console.print(f"{good} of {len(results)} as expected, {time.perf_counter() - start:.0f} s")
    return 0 if good == len(results) else 1


if __name__ == "__main__":
    sys.path.append(str(ROOT / "tests"))
    from compile_cache import own_compile_cache

    with own_compile_cache():  # one folder for all runs
        status = main(sys.argv[1:])
    sys.exit(status)
