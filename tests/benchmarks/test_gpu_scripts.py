"""The scripts that time a GPU, run on a CPU with tiny sizes; no time is judged."""

import pytest
import torch
from torch import nn

from gpu import gpu_steps
from gpu.gpu_steps import GpuWorkload
from micro import root_times
from sngd_compile.registry import ROOTS

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
