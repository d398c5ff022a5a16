"""The scripts that time a GPU, run on a CPU with tiny sizes; no time is judged."""

from pathlib import Path

import pytest
import torch
from torch import nn

from gpu import everything, gpu_steps, gpu_training
from gpu.everything import Stage
from gpu.gpu_steps import GpuWorkload
from micro import root_times
from sngd_compile.registry import ROOTS
from tasks import LABELS, Data, Task

HOST = torch.device("cpu")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scripts wait for nothing, and a period be short."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(gpu_steps, "DEVICE", HOST)
    for name in ("CYCLE", "WARM_UP"):
        monkeypatch.setattr(gpu_steps, name, 4)


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("half", [False, True])
def test_a_line_of_both_contenders(half):
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))

    batch = torch.randn(8, 5), torch.randint(3, (8,))
    line = gpu_steps.measure(GpuWorkload("tiny", build, lambda: batch, half), "eager", periods=2)
    assert line[:2] == ["tiny", "eager"]
    assert all(float(cell) > 0 for cell in line[2:7])
    ratio, low, high = (float(part.strip("()")) for part in line[7].replace("to", "").split())
    assert low <= ratio <= high


def test_every_kind_of_root_has_its_column(monkeypatch, thread_count):
    monkeypatch.setitem(root_times.WIDTHS, "cpu", (3,))
    monkeypatch.setattr(root_times, "TIMED", 2)
    rows = list(root_times.lines(HOST, ROOTS))
    assert [row[:3] for row in rows] == [
        (what, dtype, "3") for what in ("found", "applied") for dtype in ("float32", "float64")
    ]
    assert all(len(row) == 3 + len(ROOTS) for row in rows)
    assert all("to" in cell for row in rows for cell in row[3:])


def test_slow_roots_of_wide_matrices_are_left_out():
    widest = root_times.LARGEST_OF_SLOW
    assert root_times.too_slow("denman_beavers", widest + 1)
    assert not root_times.too_slow("denman_beavers", widest)
    assert not root_times.too_slow("cholesky", widest + 1)


def test_contenders_train_for_equal_time(thread_count):
    examples = torch.randn(32, 5), torch.randint(3, (32,))
    data = Data("random", examples, examples)
    task = Task("tiny", "tiny", lambda: nn.Linear(5, 3), lambda: data, 8, 0, LABELS, measured=16)
    runs = gpu_training.race(task, 0.02, HOST)
    assert [run.contender for run in runs] == list(gpu_training.CONTENDERS)
    for run in runs:
        assert len(run.losses) == gpu_training.PIECES < run.steps
        assert torch.tensor(run.losses).isfinite().all()


def test_networks_of_the_gpu_take_their_batches():
    for task in gpu_training.TASKS:
        inputs, targets = next(task.batches(task.load(), 0))
        with torch.device("meta"):
            network = task.build()
        assert len(network(inputs.to("meta"))) == len(targets)


def script(name: str, source: str, seconds: float = 20.0, is_gate: bool = False) -> Stage:
    return Stage(name, seconds, ("-c", source), is_gate)


def test_what_every_stage_prints_is_kept(tmp_path):
    stages = [script("one", "print(1)"), script("two", "print(2); raise SystemExit(3)")]
    assert everything.run_all(stages, 60, tmp_path) == 1
    assert [(tmp_path / f"{name}.txt").read_text() for name in ("one", "two")] == ["1\n", "2\n"]


def test_a_stage_that_hangs_is_stopped(tmp_path):
    hangs = script("hangs", "import time; print(1, flush=True); time.sleep(600)", seconds=1)
    assert everything.run_all([hangs, script("next", "print(2)")], 60, tmp_path) == 1
    assert (tmp_path / "hangs.txt").exists()
    assert (tmp_path / "next.txt").read_text() == "2\n"


def test_nothing_follows_a_gate_that_fails(tmp_path):
    stages = [script("gate", "raise SystemExit(1)", is_gate=True), script("next", "print(2)")]
    assert everything.run_all(stages, 60, tmp_path) == 1
    assert not (tmp_path / "next.txt").exists()


def test_no_stage_begins_when_the_time_is_out(tmp_path):
    assert everything.run_all([script("late", "print(1)")], 0, tmp_path) == 0
    assert not (tmp_path / "late.txt").exists()


def test_every_stage_is_a_command_that_is_there():
    for stage in everything.STAGES:
        target = stage.arguments[-1] if stage.is_gate else stage.arguments[1]
        root = everything.ROOT if stage.is_gate else everything.ROOT / "benchmarks"
        path = Path(target) if stage.is_gate else Path(target.replace(".", "/") + ".py")
        assert (root / path).exists()
