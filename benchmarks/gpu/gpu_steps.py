"""Step time of the default configuration over plain SGD's, on this machine's GPU.

Both take turns, a period of 100 steps each, which holds 5 observed steps and 1 refresh. Every step
is waited for. The larger networks compute under autocast to bfloat16, as they are trained.

    make bench-gpu-steps                                  # the table
    make bench-gpu-steps ARGS="--only GPT --mode eager"   # a part of it
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import Annotated

import torch
import torch.nn.functional as F
import transformers as hf
import typer
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

import sngd_compile as sngd
from interleave import CYCLE, WARM_UP
from workloads import mlp

RATE, LARGEST_NORM = 1e-4, 1.0
DEVICE = torch.device("cuda")
MODES = ("eager", "default", "reduce-overhead")
NAMES = ("SGD", "SNGD")
HEADER = (
    "network",
    "mode",
    *("SGD mean ms", "SNGD mean ms", "SGD median", "SNGD median"),
    *("SNGD, the refresh", "SNGD over SGD (single periods)"),
)


@dataclass(frozen=True)
class GpuWorkload:
    """A network on a GPU, one batch of it, and whether it computes in bfloat16."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    half: bool


class Logits(nn.Module):
    """A model of `transformers`, called with one tensor for its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `[..., classes]`."""
        logits: Tensor = self.model(inputs).logits
        return logits


def resnet() -> nn.Module:
    """ResNet-50."""
    config = hf.ResNetConfig.from_dict({"num_labels": 1000})
    return Logits(hf.ResNetForImageClassification(config))


def gpt2() -> nn.Module:
    """GPT-2 of 124 million parameters, without dropout."""
    config = hf.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    return Logits(hf.GPT2LMHeadModel(config))


def rows() -> tuple[Tensor, Tensor]:
    return torch.randn(256, 784), torch.randint(10, (256,))


def images() -> tuple[Tensor, Tensor]:
    pixels = torch.randn(64, 3, 224, 224).to(memory_format=torch.channels_last)
    return pixels, torch.randint(1000, (64,))


def texts() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(50257, (8, 1024))
    return tokens, tokens.roll(-1, 1)


WORKLOADS = (
    GpuWorkload("MLP 784-512-512-10, 256 rows, float32", mlp, rows, half=False),
    GpuWorkload("ResNet-50, 64 images of 224 x 224, bfloat16", resnet, images, half=True),
    GpuWorkload("GPT-2 124M, 8 x 1024 tokens, bfloat16", gpt2, texts, half=True),
)


def trainer(workload: GpuWorkload, name: str, mode: str) -> Callable[[], Tensor]:
    """Make one contender's step."""
    torch.manual_seed(0)
    network = workload.build().to(DEVICE)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if name == "SNGD":
        network = sngd.reconstruct(network)
    inputs, labels = (tensor.to(DEVICE) for tensor in workload.batch())
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9)
    called = network if mode == "eager" else torch.compile(network, mode=mode)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=workload.half):
            loss = F.cross_entropy(called(inputs).flatten(0, -2), labels.flatten())
        loss.backward()
        clip_grad_norm_(network.parameters(), LARGEST_NORM)
        optimizer.step()
        return loss

    return step


def period(step: Callable[[], Tensor], steps: int) -> list[float]:
    """Milliseconds of each of some steps, each waited for."""
    times = []
    for _ in range(steps):
        torch.cuda.synchronize(DEVICE)
        start = time.perf_counter()
        step()
        torch.cuda.synchronize(DEVICE)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def measure(workload: GpuWorkload, mode: str, periods: int) -> list[str]:
    """Time both contenders and write one line of the table."""
    torch.compiler.reset()
    steps = {name: trainer(workload, name, mode) for name in NAMES}
    for step in steps.values():
        period(step, WARM_UP)
    times: dict[str, list[list[float]]] = {name: [] for name in NAMES}
    for _ in range(periods):
        for name, step in steps.items():
            times[name].append(period(step, CYCLE))
    means = {name: [sum(each) / CYCLE for each in found] for name, found in times.items()}
    ratios = sorted(b / a for a, b in zip(means["SGD"], means["SNGD"], strict=True))
    typical = {name: median(chain.from_iterable(found)) for name, found in times.items()}
    return [
        workload.name,
        mode,
        *(f"{sum(means[name]) / periods:.2f}" for name in NAMES),
        *(f"{typical[name]:.2f}" for name in NAMES),
        f"{max(times['SNGD'][-1]):.1f}",
        f"{sum(means['SNGD']) / sum(means['SGD']):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
    ]


def main(
    periods: Annotated[int, typer.Option(min=1, help="Of 100 steps each.")] = 3,
    only: Annotated[str, typer.Option(help="Part of a name.")] = "",
    mode: Annotated[list[str] | None, typer.Option(help="eager, or a mode of compilation.")] = None,
) -> None:
    """Measure every workload and print the table."""
    if not torch.cuda.is_available():
        sys.exit("bench-gpu-steps needs a GPU; torch sees none")
    device = torch.cuda.get_device_name()
    typer.echo(f"{device}, torch {torch.__version__}, {periods} period(s) of {CYCLE} steps\n")
    typer.echo(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for workload in WORKLOADS:
        for each in mode or MODES if only in workload.name else ():
            typer.echo(f"| {' | '.join(measure(workload, each, periods))} |")


if __name__ == "__main__":
    typer.run(main)
