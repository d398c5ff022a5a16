"""Time of the two paths of `conv_second_moment` against `unfold` and a matrix product.

Every method takes one turn in each round, on one thread and the same input, so that whatever else
the machine does slows all of them alike. Nothing is printed unless all of them first agree with the
specification, in float64 and in float32.

    make bench-kernels
"""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sngd_kernels import conv_path
from sngd_kernels.conv.geometry import ConvGeometry, conv_geometry
from sngd_kernels.conv.patches import patch_moment_
from sngd_kernels.conv.taps import tap_moment_
from sngd_kernels.reference import conv_second_moment_reference

ROUNDS = 15
# Largest error over largest entry. Float32 sums up to 10^5 products, each exact to 6e-8.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


class Case(NamedTuple):
    """A convolution with stride 1 that keeps the size of its square images."""

    images: int
    channels: int
    size: int
    taps: int


CASES = (
    Case(8, 64, 56, 3),
    Case(16, 16, 28, 3),
    Case(16, 16, 28, 5),
    Case(8, 128, 14, 3),
    Case(8, 256, 7, 3),
    Case(8, 3, 56, 3),
    Case(8, 3, 56, 7),
    Case(8, 32, 28, 7),
)


class RedGateError(Exception):
    """A method disagrees with the specification."""


def taps(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """The tap-offset algorithm, whatever `conv_path` says."""
    return tap_moment_(x.new_empty(1, geometry.width, geometry.width), x, geometry)[0]


def patches(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """The patch algorithm, whatever `conv_path` says."""
    return patch_moment_(x.new_empty(1, geometry.width, geometry.width), x, geometry)[0]


def unfold_bmm(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """`unfold`, one product an image, their sum."""
    columns = functional.unfold(x, geometry.kernel, padding=geometry.padding)
    return torch.bmm(columns, columns.mT).sum(0)


def unfold_mm(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """`unfold`, then one product over all images."""
    columns = functional.unfold(x, geometry.kernel, padding=geometry.padding)
    columns = columns.transpose(0, 1).flatten(1)
    return columns @ columns.mT


METHODS: tuple[Callable[[Tensor, ConvGeometry], Tensor], ...] = (
    taps,
    patches,
    unfold_bmm,
    unfold_mm,
)


def setting(case: Case, dtype: torch.dtype) -> tuple[Tensor, ConvGeometry]:
    """Random images and the convolution over them."""
    x = torch.randn(case.images, case.channels, case.size, case.size, dtype=dtype)
    return x, conv_geometry(x.shape, case.taps, 1, case.taps // 2, 1, 1)


def check(case: Case) -> None:
    """Compare every method with the specification, on one image; refuse to go on if one is off."""
    for dtype, tolerance in TOLERANCES.items():
        x, geometry = setting(case._replace(images=1), dtype)
        sizes = geometry.kernel, geometry.stride, geometry.padding, geometry.dilation
        exact = conv_second_moment_reference(x.double(), *sizes, 1)
        for method in METHODS:
            error = (method(x, geometry).double() - exact).abs().max() / exact.abs().max()
            if not error.item() <= tolerance:
                raise RedGateError(f"{method.__name__} is off by {error:.1e} for {case}, {dtype}")


def measure(case: Case) -> dict[str, list[float]]:
    """Milliseconds of every method in every round, after one that does not count."""
    x, geometry = setting(case, torch.float32)
    milliseconds: dict[str, list[float]] = {method.__name__: [] for method in METHODS}
    for _ in range(1 + ROUNDS):
        for method in METHODS:
            start = time.perf_counter()
            method(x, geometry)
            milliseconds[method.__name__].append(1e3 * (time.perf_counter() - start))
    return {name: times[1:] for name, times in milliseconds.items()}


def row(case: Case, milliseconds: dict[str, list[float]]) -> str:
    """Medians with their 20 and 80 % quantiles, and how much slower the best of `unfold` is."""
    medians = {name: statistics.median(times) for name, times in milliseconds.items()}
    cells = []
    for name, times in milliseconds.items():
        low, _, _, high = statistics.quantiles(times, n=5)
        cells.append(f"{medians[name]:7.2f} {f'({low:.2f}-{high:.2f})':>17}")
    unfold = min(medians["unfold_bmm"], medians["unfold_mm"])
    ratios = [f"{unfold / medians[name]:6.2f}" for name in ("taps", "patches")]
    shape = (case.images, case.channels, case.size, case.size)
    path = conv_path(shape, case.taps, 1, case.taps // 2)
    label = f"{'x'.join(map(str, shape))} k{case.taps}"
    return "  ".join([f"{label:16}", *cells, *ratios, f"{path:>7}"])


def processor() -> str:
    """Name the processor as Linux or else Python knows it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor())


def main() -> None:
    """Check, then measure and print one line for each case."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for case in CASES:
        check(case)
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {processor()}, {capability}, one thread, float32")
    print(f"milliseconds: median (20 % - 80 %) of {ROUNDS} interleaved rounds; best unfold / ours")
    titles = [f"{method.__name__:>25}" for method in METHODS]
    print("  ".join([" " * 16, *titles, "/ taps", "/ patc", "   path"]))
    for case in CASES:
        print(row(case, measure(case)), flush=True)


if __name__ == "__main__":
    main()
