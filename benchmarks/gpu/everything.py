"""All that a GPU is asked, within one limit of time: first whether the kernels are right.

Each stage is a process of its own that is stopped when its time is out, so one that hangs costs the
others nothing. What it printed until then is kept: a file for each stage.

    make bench-gpu-all
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Stage:
    """One part.

    Args:
        name: Of its file.
        seconds: Which it may take, at the most.
        arguments: Of Python.
        is_gate: Whether nothing that comes after it means anything where it fails.
    """

    name: str
    seconds: float
    arguments: tuple[str, ...]
    is_gate: bool = False


STAGES = (
    Stage("gate", 120, ("-m", "pytest", "-q", "-x", "-m", "", "tests/ops/device"), is_gate=True),
    Stage("kernels", 100, ("-m", "gpu.gpu_kernels")),
    Stage("steps", 120, ("-m", "gpu.gpu_steps", "--periods", "1", "--mode", "eager")),
    Stage("training", 150, ("-m", "gpu.gpu_training", "--seconds", "20")),
    Stage("roots", 60, ("-m", "micro.root_times", "--device", "cuda")),
    Stage("compiled", 300, ("-m", "gpu.gpu_steps", "--periods", "1", "--mode", "default")),
)
"""The order says what matters most, should the time be out."""


def run(stage: Stage, seconds: float, output: Path) -> bool:
    """Run a stage, its output in a file; say whether it ended well."""
    path = output / f"{stage.name}.txt"
    with path.open("w") as file:
        try:
            ended = subprocess.run(
                [sys.executable, *stage.arguments],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return ended.returncode == 0


def run_all(stages: Sequence[Stage], limit: float, output: Path) -> int:
    """Run stages until the time is out.

    Returns:
        How many failed or were stopped; a gate that failed ends all.
    """
    output.mkdir(parents=True, exist_ok=True)
    begin, failed = time.monotonic(), 0
    for stage in stages:
        start = time.monotonic()
        left = limit - (start - begin)
        if left <= 0:
            typer.echo(f"{stage.name}: not run, the {limit:g} seconds are over")
            continue
        good = run(stage, min(stage.seconds, left), output)
        failed += not good
        took = time.monotonic() - start
        typer.echo(f"{stage.name}: {'done' if good else 'FAILED'} in {took:.0f} s")
        typer.echo((output / f"{stage.name}.txt").read_text())
        if stage.is_gate and not good:
            typer.echo("Nothing is timed: what would be timed is wrong.")
            break
    return failed


def main(
    limit: Annotated[float, typer.Option(help="Seconds for all of it.")] = 480.0,
    output: Annotated[Path, typer.Option(help="Folder for what is printed.")] = ROOT / "build/gpu",
) -> None:
    """Check the kernels, then time them, steps and training."""
    if not torch.cuda.is_available():
        sys.exit("bench-gpu-all needs a GPU; torch sees none")
    raise typer.Exit(min(1, run_all(STAGES, limit, output)))


if __name__ == "__main__":
    typer.run(main)
