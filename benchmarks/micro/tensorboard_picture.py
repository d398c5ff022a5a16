"""Draws `docs/tensorboard.png`: the metrics of `make monitoring` as TensorBoard shows them.

make tensorboard-picture
"""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote
from urllib.request import urlopen

import typer
from torch.utils.tensorboard import SummaryWriter

from micro.metrics_over_time import STEPS, courses

PICTURE = Path(__file__).parents[2] / "docs" / "tensorboard.png"
SHOWN = "weight/(effective_rank|share)$"
SIZE = "1020,745"
SECONDS = 60


def write(folder: Path) -> None:
    """Train, and write every metric as the recipe of docs/monitoring.md does."""
    writer = SummaryWriter(folder / "runs" / "digits")
    for step, metrics in enumerate(courses(STEPS)):
        for tag, value in metrics.items():
            writer.add_scalar(tag, value, step)
    writer.close()


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine alone, and give the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--logdir", "runs", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *options], cwd=folder)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/data/runs", "digits", server)
        yield address
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str, text: str, server: subprocess.Popen[bytes]) -> None:
    """Ask a server until its answer has the text."""
    for _ in range(SECONDS):
        if server.poll() is not None:
            raise SystemExit("TensorBoard has ended")
        with suppress(OSError), urlopen(address) as answer:
            if text in answer.read().decode():
                return
        time.sleep(1)
    raise SystemExit(f"{address} has not said {text!r} in {SECONDS} s")


def take(browser: str, address: str, profile: Path) -> None:
    """Have Chromium draw the tab with the scalars, two of each weight."""
    state = f"scalars&tagFilter={quote(SHOWN)}&_smoothingWeight=0"
    # The page asks for its data bit by bit: its clock runs ahead until all of it is drawn.
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=40000"]
    options += [f"--window-size={SIZE}", f"--user-data-dir={profile}", f"--screenshot={PICTURE}"]
    subprocess.run([browser, *options, f"{address}/#{state}"], check=True)


def main() -> None:
    """Train, serve, and take the picture with Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("needs Chromium")
    with TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        with tensorboard(folder) as address:
            take(browser, address, folder / "profile")


if __name__ == "__main__":
    typer.run(main)
