"""What normalisations, embeddings and scales add to a step: reconstructed, or left out.

Two networks take turns on one thread, reconstructed alike except that in one of them the small
layers are left out by an override.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import sngd_compile as sngd
from contenders import Recipe, Trainee, limit_to_one_thread, plain_sgd
from interleave import CYCLE, WARM_UP, Ratio, take_turns
from workloads import CLASSES

BAR = 1.05
SMALL = frozenset(("embedding", "layer_norm", "batch_norm", "scale"))
"""Rules of the layers in question."""


class Encoder(nn.Module):
    """Two transformer blocks on 128 tokens of a vocabulary of 5000."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(5000, 256)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(256, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Classify sequences."""
        logits: Tensor = self.head(self.blocks(self.tokens(tokens)).mean(1))
        return logits


def residual_net() -> nn.Module:
    """Convolutions of 32 channels on 28x28 images, each with BatchNorm."""
    layers: list[nn.Module] = []
    for channels in (1, 32, 32, 32):
        layers += [nn.Conv2d(channels, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))


def sequences() -> Iterator[tuple[Tensor, Tensor]]:
    """Random tokens and labels."""
    generator = torch.Generator().manual_seed(1)
    while True:
        tokens = torch.randint(5000, (8, 128), generator=generator)
        yield tokens, torch.randint(CLASSES, (8,), generator=generator)


def images() -> Iterator[tuple[Tensor, Tensor]]:
    """Noise and labels."""
    generator = torch.Generator().manual_seed(1)
    while True:
        inputs = torch.randn(32, 1, 28, 28, generator=generator)
        yield inputs, torch.randint(CLASSES, (32,), generator=generator)


@dataclass(frozen=True)
class Workload:
    """A network and its batches."""

    name: str
    build: Callable[[], nn.Module]
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]


WORKLOADS = (
    Workload("transformer encoder", Encoder, sequences),
    Workload("conv net with BatchNorm", residual_net, images),
)


def trainee(workload: Workload, with_small: bool) -> Trainee:
    """Reconstruct the network, with the small layers or without them."""
    torch.manual_seed(0)
    model = workload.build()
    small = [site.name for site in sngd.explain(model).sites if site.rule in SMALL]
    overrides = None if with_small else dict.fromkeys(small)
    network = sngd.reconstruct(model, overrides=overrides)
    return plain_sgd(network, Recipe(0.03))


def measure(workload: Workload, steps: int) -> Ratio:
    """Return the step time with the small layers over that without them."""
    trainees = {"with": trainee(workload, True), "without": trainee(workload, False)}
    batches = workload.batches()
    take_turns(trainees, batches, WARM_UP)
    times = take_turns(trainees, batches, steps)
    return Ratio.of(times["with"], times["without"])


def main(
    steps: Annotated[int, typer.Option(min=CYCLE, help="Rounded up to whole cycles.")] = 2 * CYCLE,
) -> None:
    """Time what small layers cost."""
    limit_to_one_thread()
    table = Table("network", "mean ratio", "single cycles", f"bar {BAR}")
    for workload in WORKLOADS:
        ratio = measure(workload, -(-steps // CYCLE) * CYCLE)
        extremes = f"{ratio.low:.3f} to {ratio.high:.3f}"
        verdict = "pass" if ratio.mean <= BAR else "miss"
        table.add_row(workload.name, f"{ratio.mean:.3f}", extremes, verdict)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
