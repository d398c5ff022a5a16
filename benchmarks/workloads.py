"""What is timed: a few networks, and an endless supply of batches for them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10


@dataclass(frozen=True)
class Workload:
    """A network to train at one batch size, and the largest step time over plain SGD's wanted."""

    name: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    batch_size: int
    bar: float

    @property
    def criterion(self) -> nn.Module:
        """The loss."""
        return nn.CrossEntropyLoss()

    def model(self) -> nn.Module:
        """The network with the same weights every time."""
        torch.manual_seed(0)
        return self.build()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Noise, labelled by a linear teacher, so that training goes on and never runs dry."""
        generator = torch.Generator().manual_seed(1)
        teacher = torch.randn(torch.Size(self.input_shape).numel(), CLASSES, generator=generator)
        while True:
            inputs = torch.randn(self.batch_size, *self.input_shape, generator=generator)
            yield inputs, (inputs.flatten(1) @ teacher).argmax(1)


def mlp() -> nn.Module:
    """784-512-512-10 with ReLU."""
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, CLASSES)
    )


def conv_net() -> nn.Module:
    """Three 3x3 convolutions of 16 and 32 channels over 28x28 images, then a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, CLASSES),
    )


WORKLOADS = (
    Workload("MLP 784-512-512-10", mlp, (784,), 256, bar=1.35),
    Workload("conv net 16-32-32, 28x28", conv_net, (1, 28, 28), 128, bar=1.10),
)


class Transformer(nn.Module):
    """One block of width 256 over the tokens of a sequence, and a classifier of their mean."""

    def __init__(self, width: int = 256):
        super().__init__()
        self.before_attention, self.before_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Classify sequences `[N, T, width]`."""
        heads = self.project(self.before_attention(tokens)).unflatten(-1, (3, 4, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(attended.transpose(1, 2).flatten(2))
        tokens = tokens + self.down(F.gelu(self.up(self.before_feed(tokens))))
        scores: Tensor = self.head(tokens.mean(1))
        return scores


COMPILED_WORKLOADS = (
    *WORKLOADS,
    Workload("Transformer block 256, 4096 tokens", Transformer, (256, 256), 16, bar=1.25),
)
"""Those timed compiled."""
