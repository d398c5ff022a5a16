"""Two processes on half of each batch walk the path of one process on all of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
]


def train(kind: str, size: int, folder: Path) -> list:
    """Run all processes; return what each printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    commands = [
        [sys.executable, HERE / "worker.py", kind, str(rank), str(size), folder / f"{kind}{size}"]
        for rank in range(size)
    ]
    running = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    printed = [process.communicate(timeout=300) for process in running]
    for process, (_, errors) in zip(running, printed, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(output.splitlines()[-1]) for output, _ in printed]


@pytest.mark.parametrize("kind", ["eager", "compiled", "backend", "kronecker"])
def test_halves_of_a_batch_add_up(kind, tmp_path):
    ((expected, rows),) = train(kind, 1, tmp_path)
    for weights, seen in train(kind, 2, tmp_path):
        assert seen == rows
        for one, other in zip(weights, expected, strict=True):
            torch.testing.assert_close(
                torch.tensor(one), torch.tensor(other), rtol=1e-10, atol=1e-12
            )
