"""`make help` lists the targets that the documentation speaks of."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
TARGETS = ["help", "demo", "test", "test-slow", "nightly", "fuzz", "test-interpreter", "test-gpu"]
TARGETS += ["test-triton-matrix", "test-torch-matrix"]
TARGETS += [
    "lint",
    "format",
    "types",
    "docs",
    "site",
    "bench",
    "bench-peers",
    "bench-muon",
    "bench-why",
    "bench-one-rate",
    "bench-exact",
    "bench-fishers",
    "reproduce",
    "bench-layers",
    "bench-memory",
    "bench-profile",
    "bench-compiled",
    "bench-kernels",
    "bench-roots",
    "bench-refresh",
    "bench-metrics",
    "monitoring",
    "tensorboard-picture",
    "report-picture",
    "bench-gpu-steps",
    "bench-gpu",
    "bench-gpu-all",
    "kernel-table",
]
TARGETS += ["mutants", "wheel", "release-check", "check", "clean"]


def test_help_lists_every_target():
    printed = subprocess.run(
        ["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("make ")] == TARGETS
