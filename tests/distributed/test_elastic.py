"""A training whose processes are killed ends, to the bit, where an undisturbed one does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distributed import run

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without distributed"
)
EXAMPLE = Path(__file__).parents[2] / "examples" / "elastic.py"


@pytest.mark.parametrize(
    "kills",
    [pytest.param(3, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.nightly)],
)
def test_it_ends_where_an_undisturbed_one_does(kills, tmp_path):
    (((differs, places, killed),), errors) = run("killed.py", str(kills), 1, tmp_path, 1800)
    assert differs == {}
    assert killed == kills
    # In the middle of a save, between an observed step and its refresh, in a refresh.
    assert {"in_a_save", "before_a_refresh", "in_a_refresh"} <= places.keys()
    assert "SngdWarning" not in errors


def launched(file: Path) -> subprocess.Popen:
    """Start the example as its first lines say."""
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, EXAMPLE, file]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLE.parent)}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def workers(launcher: subprocess.Popen) -> list[int]:
    """List the processes that a launcher has started."""
    tasks = Path(f"/proc/{launcher.pid}/task").glob("*/children")
    return [int(number) for task in tasks for number in task.read_text().split()]


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc to find processes in")
def test_the_example_is_started_again_by_its_launcher(tmp_path):
    ends = []
    for name in ("disturbed", "undisturbed"):
        file = tmp_path / f"{name}.pt"
        launcher = launched(file)
        while name == "disturbed" and not file.exists():
            assert launcher.poll() is None
            time.sleep(0.01)
        if name == "disturbed":
            os.kill(workers(launcher)[-1], signal.SIGKILL)
        printed, _ = launcher.communicate(timeout=300)
        assert launcher.returncode == 0
        assert "not trained on: 9" in printed
        ends.append(torch.load(file, weights_only=True))
    assert ends[0]["step"] == ends[1]["step"]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
