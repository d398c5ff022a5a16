"""Memory of training at size: the peak of a step, state and refresh by layers, width and batch.

make bench-memory

Writes benchmarks/results/memory.md. Peaks are counted, not sampled: what lives before a step, and
the running sum of what the allocator gives and takes back in it.
"""

import itertools
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import sngd_compile as sngd
from contenders import limit_to_one_thread
from profiling.profile_step import KINDS, kind_of
from steps.step_report import processor
from tasks import TASKS, of_task
from workloads import WORKLOADS, Workload

RESULTS = Path(__file__).parents[1] / "results"
STUDIED = ("resnet", "gpt", "autoencoder")
SIZES = tuple(itertools.product((2, 8), (256, 512, 1024, 2048), (64, 512)))
"""Layers, width and batch, each width above that from which a layer has a sketch."""

LLAMA = ((4096, 4096, 4), (4096, 11008, 2), (11008, 4096, 1))
"""Inputs, outputs and number of the linear layers of a block of Llama 7B."""

BLOCKS = 32


@dataclass(frozen=True)
class Size:
    """A network of equal layers: bytes of its Fisher layers, seconds of a refresh."""

    layers: int
    width: int
    batch: int
    state: int
    seconds: float


@dataclass(frozen=True)
class Costs:
    """Of a layer `a + b D` bytes of state and `a + b O D` seconds of a refresh, and the misfit."""

    state: Sequence[float]
    seconds: Sequence[float]
    misfit: float

    def of(self, inputs: int, outputs: int) -> tuple[float, float]:
        """Predict bytes and seconds of a layer without a bias."""
        (base, slope), (fixed, by_size) = self.state, self.seconds
        return base + slope * inputs, fixed + by_size * outputs * inputs


def resting_bytes(network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of parameters, gradients, buffers and momenta."""
    parameters = [*network.parameters()]
    held: list[Any] = [*parameters, *(p.grad for p in parameters), *network.buffers()]
    held += [state for own in optimizer.state.values() for state in own.values()]
    # Names that share a parameter share its memory.
    tensors = {id(tensor): tensor for tensor in held if isinstance(tensor, Tensor)}
    return sum(tensor.nbytes for tensor in tensors.values())


def peaks(workload: Workload, network: nn.Module) -> dict[str, int]:
    """The most bytes that live at once in the first step of each kind after the early ones."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    found: dict[str, int] = {}
    last = sngd.Config().early_refreshes[-1]
    for step, (inputs, targets) in enumerate(workload.batches()):
        kind = kind_of(step)
        is_wanted = step > last and kind not in found
        # Before it is counted: what was there already goes without a word of the allocator.
        optimizer.zero_grad()
        resting = resting_bytes(network, optimizer)
        with counting() if is_wanted else nullcontext() as profiler:
            workload.criterion(network(inputs), targets).backward()
            optimizer.step()
        if profiler is not None:
            found[kind] = resting + highest(profiler)
        if len(found) == len(KINDS) - 1:
            break
    return found


def counting() -> profile:
    """Record what is allocated and freed."""
    return profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)


def highest(profiler: profile) -> int:
    """The highest running sum of what was allocated and freed."""
    # As of torch 2.13 only the private results have them one by one.
    events: list[Any] = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    taken = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(max(itertools.accumulate((size for _, size in taken), initial=0)))


def measured(layers: int, width: int, batch: int) -> Size:
    """Refresh a network of equal linear layers three times; the fastest counts."""
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(width, width, bias=False), nn.Tanh()) for _ in range(layers)]
    network = sngd.reconstruct(nn.Sequential(*parts))
    seconds = []
    for _ in range(3):
        network(torch.randn(batch, width))
        start = time.process_time()
        sngd.refresh_(network)
        seconds.append(time.process_time() - start)
    return Size(layers, width, batch, sngd.explain(network).state_bytes, min(seconds))


def fitted(sizes: Sequence[Size]) -> Costs:
    """Fit what a layer costs, each size with the same relative weight."""
    ones, widths = np.ones(len(sizes)), np.array([float(size.width) for size in sizes])
    state = np.array([size.state / size.layers for size in sizes])
    seconds = np.array([size.seconds / size.layers for size in sizes])

    def solved(term: Any, costs: Any) -> Any:
        return np.linalg.lstsq(np.stack([ones, term], 1) / costs[:, None], ones, rcond=None)[0]

    by_state, by_time = solved(widths, state), solved(widths**2, seconds)
    misfit = np.abs((by_time[0] + by_time[1] * widths**2) / seconds - 1).max()
    return Costs(by_state.tolist(), by_time.tolist(), float(misfit))


def planned_llama() -> int:
    """Bytes that the plan gives the Fisher layers of the linear layers of Llama 7B."""
    with torch.device("meta"):
        block = [nn.Linear(i, o, bias=False) for i, o, count in LLAMA for _ in range(count)]
        return BLOCKS * sngd.explain(nn.Sequential(*block)).state_bytes


def lines_of(found: dict[str, dict[str, dict[str, int]]], sizes: Sequence[Size]) -> Iterator[str]:
    """The page."""
    yield "# Memory at size\n"
    yield f"processor: {processor()}, threads: 1, torch: {torch.__version__}, float32\n"
    yield (
        "`make bench-memory`: the most bytes that live at once in a step, over those of the plain "
        "network's, in brackets MiB. Parameters, gradients, momentum, buffers and all that a step "
        "allocates count; the batch does not.\n"
    )
    yield "| network | plain | steady | observed | refresh |\n| --- | --- | --- | --- | --- |"
    for name, by_network in found.items():
        plain = max(by_network["plain"].values())
        own = by_network["reconstructed"]
        cells = [f"{own[k] / plain:.2f} ({own[k] / 2**20:.1f})" for k in KINDS[1:]]
        yield f"| {name} | 1 ({plain / 2**20:.1f}) | {' | '.join(cells)} |"
    yield (
        "\n## Layers, width, batch\n\nEqual linear layers of D inputs and O = D outputs, no bias. "
        "Processor seconds of a refresh, the least of three; load of the machine in the end: "
        f"{os.getloadavg()[0]:.1f}.\n"
    )
    yield "| layers | D | batch | Fisher layers, MiB | refresh, ms |"
    yield "| --- | --- | --- | --- | --- |"
    for s in sizes:
        cells = [f"{s.layers}", f"{s.width}", f"{s.batch}", f"{s.state / 2**20:.2f}"]
        yield f"| {' | '.join(cells)} | {s.seconds * 1e3:.2f} |"
    costs = fitted(sizes)
    (base, slope), (fixed, by_size) = costs.state, costs.seconds
    yield (
        f"\nFitted to one layer: {base:.0f} + {slope:.1f} D bytes, and {fixed * 1e3:.3f} + "
        f"{by_size * 1e9:.3f} O D / 1,000,000 milliseconds; the worst misfit of a time is "
        f"{costs.misfit:.0%}. The batch is in neither: a layer keeps sums, not rows.\n"
    )
    yield prediction(costs)


def prediction(costs: Costs) -> str:
    """What the fit says of Llama 7B."""
    blocks = [costs.of(inputs, outputs) for inputs, outputs, n in LLAMA for _ in range(n)]
    state, seconds = (BLOCKS * sum(column) for column in zip(*blocks, strict=True))
    elements = BLOCKS * sum(i * o * n for i, o, n in LLAMA)
    return (
        "## Prediction for 7 B\n\n**Not measured**: the fit, put to the "
        f"{BLOCKS * sum(n for *_, n in LLAMA)} linear layers of Llama 7B ({elements / 1e9:.1f} "
        "thousand million elements, up to five times as wide as what was measured): "
        f"{state / 2**20:.0f} MiB of Fisher layers (the plan of these layers says "
        f"{planned_llama() / 2**20:.0f}), {seconds:.0f} s for a refresh on this one thread. In "
        "bfloat16 the remainders of the parameters come to it "
        "([decision 29](../../docs/decisions/0029-what-rounding-takes.md)), "
        f"{2 * elements / 2**30:.1f} GiB.\n"
    )


def main(
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Measure the memory of training; print and write a page."""
    limit_to_one_thread()
    warnings.filterwarnings("ignore", category=sngd.SngdWarning)
    found = {}
    for workload in (*WORKLOADS, *(of_task(task) for task in TASKS if task.name in STUDIED)):
        plain = peaks(workload, workload.model())
        own = peaks(workload, sngd.reconstruct(workload.model()))
        found[workload.name] = {"plain": plain, "reconstructed": own}
    text = "\n".join(lines_of(found, [measured(*size) for size in SIZES]))
    print(text)
    (output / "memory.md").write_text(text)


if __name__ == "__main__":
    typer.run(main)
