"""What the memory benchmark counts is there, and its fit finds what was put in."""

from pathlib import Path

import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

import benchmarks_tiny
import sngd_compile as sngd
from steps import memory_at_size
from steps.memory_at_size import Size, fitted, peaks, planned_llama
from workloads import CLASSES, Workload

TINY = Workload("tiny", lambda: nn.Sequential(nn.Linear(30, CLASSES)), (30,), 8, bar=1.0)
PARAMETERS = 4 * 31 * CLASSES


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, thread_count):
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")


def test_a_peak_holds_parameters_momenta_and_gradients():
    plain, own = (peaks(TINY, net) for net in (TINY.model(), sngd.reconstruct(TINY.model())))
    assert min(plain.values()) >= 3 * PARAMETERS
    assert max(plain.values()) < 4 * PARAMETERS + 4 * 3 * 8 * CLASSES + 2000
    state = sngd.explain(TINY.model()).state_bytes
    assert set(own) == {"steady", "observed", "refresh"}
    assert all(own[kind] >= plain[kind] + state for kind in own)


def test_the_fit_finds_what_was_put_in():
    layers = [(n, d, n * (100 + 7 * d), n * (0.5 + 2e-4 * d * d)) for n in (1, 3) for d in (8, 90)]
    costs = fitted([Size(n, width, 5, state, seconds) for n, width, state, seconds in layers])
    assert costs.of(1000, 10) == pytest.approx((7100.0, 2.5))
    assert costs.misfit < 1e-9


def test_the_page_says_what_is_a_prediction(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(memory_at_size, "WORKLOADS", (TINY,))
    monkeypatch.setattr(memory_at_size, "TASKS", (benchmarks_tiny.TINY,))
    monkeypatch.setattr(memory_at_size, "SIZES", ((1, 200, 3), (2, 300, 3), (1, 400, 3)))
    app = typer.Typer()
    app.command()(memory_at_size.main)
    done = CliRunner().invoke(app, ["--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "memory.md").read_text()
    assert f"torch: {torch.__version__}" in text
    assert "| tiny | 1 " in text
    assert "**Not measured**" in text.split("## Prediction for 7 B")[1]


def test_the_plan_of_the_large_network_is_that_of_its_layers():
    one = sngd.explain(nn.Linear(4096, 4, bias=False)).state_bytes
    assert planned_llama() > 32 * 6 * one
