"""What one root of one layer takes at a refresh, and what it takes to apply it.

make bench-roots                         # on one thread of the CPU
make bench-roots ARGS="--device cuda"    # on this machine's GPU
"""

import platform
import time
from collections.abc import Callable, Iterator
from itertools import product
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

import sngd_compile as sngd
from sngd_compile.config import RANK
from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.kinds.shared import Shared
from sngd_compile.fisher.kinds.sketch import Sketch, sketched
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.next_roots import NextRoot, next_roots
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.layout import Layout
from sngd_compile.registry import ROOTS, RULES

OUTPUTS, TIMED = 64, 9
WIDTHS = {"cpu": (64, 256, 1024), "cuda": (64, 128, 256, 512, 1024, 2048, 4096)}
LARGEST_OF_SLOW = 2048
SLOW = ("symmetric", "denman_beavers")

console = Console(width=220)


def layer_of(dtype: torch.dtype, kind: str, width: int, device: torch.device) -> FisherLayer:
    """A Fisher layer that has seen correlated rows and has no root yet: a sketch, or of a root."""
    is_sketch = kind == Sketch.name
    config = sngd.Config(damping_rel_trace=1e-3, root=sngd.Config.root if is_sketch else kind)
    fisher = Sketch.name if is_sketch else Shared.name
    spec = FisherSpec.of(Layout.plain((OUTPUTS, width)), False, fisher, config, dtype)
    layer = FisherLayer("layer", sketched(spec, RANK) if is_sketch else spec, config, device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 * width, width, generator=generator, dtype=dtype).to(device)
    x *= torch.logspace(0, -2, width, dtype=dtype, device=device)
    kind_of(layer.spec).add_rows(
        layer.spec, RULES["linear"], [x / len(x) ** 0.5], None, (), layer.factor
    )
    return layer


def timed(
    device: torch.device, call: Callable[[], object], after: Callable[[], object] = lambda: None
) -> str:
    """Milliseconds of a call, without what comes after it: median, least, largest."""
    times = []
    for _ in range(TIMED + 1):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        times.append(1e3 * (time.perf_counter() - start))
        after()
    times = sorted(times[1:])
    return f"{median(times):.2f} ({times[0]:.2f} to {times[-1]:.2f})"


def wait(device: torch.device) -> None:
    """Let a GPU finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_of_a_root(dtype: torch.dtype, kind: str, width: int, device: torch.device) -> str:
    """Time a root of a layer."""
    layer = layer_of(dtype, kind, width, device)
    found: list[NextRoot | None] = []

    def check() -> None:
        assert found.pop() is not None

    return timed(device, lambda: found.extend(next_roots([layer])), check)


def time_of_applying(dtype: torch.dtype, kind: str, width: int, device: torch.device) -> str:
    """Time the product of as many rows as the layer has inputs with its root."""
    layer = layer_of(dtype, kind, width, device)
    (found,) = next_roots([layer])
    assert found is not None
    rows = torch.randn(width, width, dtype=dtype, device=device)
    return timed(device, lambda: found.root.fold(rows, None))


def lines(device: torch.device, kinds: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """One line for each width and dtype."""
    for what, call in (("found", time_of_a_root), ("applied", time_of_applying)):
        for dtype, width in product((torch.float32, torch.float64), WIDTHS[device.type]):
            cells = (
                "" if too_slow(kind, width) else call(dtype, kind, width, device) for kind in kinds
            )
            yield what, str(dtype)[6:], str(width), *cells


def too_slow(kind: str, width: int) -> bool:
    """Whether a kind takes seconds for such a matrix."""
    return kind in SLOW and width > LARGEST_OF_SLOW


def described(device: torch.device) -> str:
    """Name a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, one thread"


def main(device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu") -> None:
    """Print the table."""
    torch.set_num_threads(1)
    where, kinds = torch.device(device), (*ROOTS, Sketch.name)
    table = Table("root", "dtype", "D", *kinds, title_justify="left")
    table.title = "one root, milliseconds: median (least to largest)"
    for line in lines(where, kinds):
        table.add_row(*line)
    console.print(f"{described(where)}, torch {torch.__version__}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
