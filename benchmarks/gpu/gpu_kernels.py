"""Time of the Triton kernels against the best that PyTorch's own calls do, on this machine's GPU.

No row is printed unless the kernel is as exact as the library (`make test-gpu` says how exact). The
roofline is the larger of bytes over this GPU's measured copy bandwidth and multiply-adds over its
measured bf16 product; a fraction of 1 is a kernel that nothing could beat.

    make bench-gpu                                  # the table
    make bench-gpu ARGS="--out benchmarks/results/gpu_kernels.json"
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import triton
import typer
from triton.testing import do_bench

from gpu.gpu_cases import CASES, GpuCase

GIB = 2**30


class RedGateError(Exception):
    """A kernel is less exact than the library's own calls."""


def ceilings() -> tuple[float, float]:
    """Measure bytes a second of a copy, and bf16 multiply-adds a second of a large product."""
    source = torch.empty(GIB, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = do_bench(lambda: target.copy_(source), return_mode="median")
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    product = do_bench(lambda: a @ a, return_mode="median")
    return 2 * GIB / copy * 1e3, 8192**3 / product * 1e3


def check(case: GpuCase, arguments: tuple[Any, ...]) -> None:
    """Compare kernel and library with float64.

    Raises:
        RedGateError: The kernel's error is more than four times the library's.
    """
    exact = case.exact(*arguments)
    copies = [[tensor.clone() for tensor in arguments] for _ in "ab"]  # a buffer is added to
    results = (case.kernel(*copies[0]), case.library(*copies[1]))
    kernel, library = (
        ((result.double() - exact).abs().max() / exact.abs().max()).item() for result in results
    )
    if not kernel <= 4 * library + 2e-6:
        raise RedGateError(f"{case.name}: error {kernel:.1e}, the library's is {library:.1e}")


def measure(case: GpuCase, bandwidth: float, rate: float) -> dict[str, Any]:
    """Check one case, then time kernel and library, milliseconds at 20, 50 and 80 %."""
    check(case, case.small())
    arguments = case.arguments()
    kernel, library = (
        do_bench(lambda f=f: f(*arguments), quantiles=(0.5, 0.2, 0.8))
        for f in (case.kernel, case.library)
    )
    floor = 1e3 * max(case.bytes / bandwidth, case.multiply_adds / rate)
    return {
        "case": case.name,
        "library": case.library_name,
        "kernel_ms": {"p20": kernel[1], "p50": kernel[0], "p80": kernel[2]},
        "library_ms": {"p20": library[1], "p50": library[0], "p80": library[2]},
        "speedup": library[0] / kernel[0],
        "roofline": floor / kernel[0],
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
    }


HEADER = """| case | against | kernel p20/50/80 ms | library ms | speedup | roofline |
|---|---|---|---|--:|--:|"""


def line(row: dict[str, Any]) -> str:
    """Write a row as Markdown."""
    times = (
        "/".join(f"{row[key][p]:.3f}" for p in ("p20", "p50", "p80"))
        for key in ("kernel_ms", "library_ms")
    )
    cells = (row["case"], row["library"], *times, f"{row['speedup']:.2f}")
    return f"| {' | '.join(cells)} | {row['roofline']:.2f} |"


def main(
    out: Annotated[Path | None, typer.Option(help="Write the rows there as JSON as well.")] = None,
) -> None:
    """Measure every case and print the table."""
    if not torch.cuda.is_available():
        sys.exit("bench-gpu needs a GPU; torch sees none")
    os.environ["SNGD_KERNELS"] = "triton"
    torch.manual_seed(0)
    bandwidth, rate = ceilings()
    device = torch.cuda.get_device_name()
    typer.echo(f"{device}, torch {torch.__version__}, triton {triton.__version__}")
    typer.echo(f"copy {bandwidth / 1e12:.2f} TB/s, bf16 product {2 * rate / 1e12:.0f} TFLOP/s")
    typer.echo(f"\n{HEADER}")
    rows = []
    for case in CASES:
        rows.append(measure(case, bandwidth, rate))
        typer.echo(line(rows[-1]))
    if out is not None:
        out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
