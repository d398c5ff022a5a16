"""Models written in plain PyTorch: recurrent, U-shaped, functional, with control flow."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import ZooCase, tokens


class RecurrentLanguageModel(nn.Module):
    """Embedding, recurrent layers, a head tied to the embedding."""

    def __init__(self, layer: type[nn.Module]):
        super().__init__()
        self.embedding = nn.Embedding(101, 24)
        self.layers = layer(24, 24, num_layers=2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(24, 101, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input: Tensor) -> Tensor:
        """Predict the next token."""
        return self.head(self.layers(self.embedding(input))[0])


class UNet(nn.Module):
    """Down, up, and a connection past the bottom."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.PReLU())
        self.down = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1)
        self.last = nn.Conv2d(16, 1, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Map images to images."""
        fine = self.first(input)
        return self.last(torch.cat([fine, self.up(self.down(fine))], 1))


class Functional(nn.Module):
    """Weights of its own, used through functions."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 1, 3) / 3)
        self.gain = nn.Parameter(torch.ones(6))
        self.shift = nn.Parameter(torch.zeros(6))
        self.mix = nn.Parameter(torch.randn(6, 5) / 3)
        self.heads = nn.ParameterList([nn.Parameter(torch.randn(4, 5) / 3) for _ in range(2)])

    def forward(self, input: Tensor) -> Tensor:
        """Convolve, normalise, mix, and average two heads."""
        x = F.conv1d(input[:, None], self.kernel, padding=1).mean(-1)
        x = F.layer_norm(x, (6,), self.gain, self.shift)
        x = torch.tanh(torch.einsum("nk,ko->no", x, self.mix))
        return sum(F.linear(x, head) for head in self.heads)


class ControlFlow(nn.Module):
    """Chooses an expert by what it sees, and repeats a layer as often as it likes."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(2, 9, 9) / 3)
        self.repeated = nn.Linear(9, 9)
        self.norm = nn.LayerNorm(9)

    def forward(self, input: Tensor) -> Tensor:
        """Apply one expert to every half, then the repeated layer."""
        halves = [F.linear(x, self.experts[int(x.sum() > 0)]) for x in input.chunk(2)]
        x = torch.cat(halves)
        for _ in range(1 + int(x.abs().max() > 1)):
            x = x + torch.tanh(self.repeated(self.norm(x)))
        return x


def squares(output: Tensor) -> Tensor:
    """Fit a wave."""
    target = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return (output - target.sin()).square().mean()


def next_token(output: Tensor) -> Tensor:
    """Predict a fixed sequence."""
    labels = torch.arange(output[..., 0].numel()) % 7
    return F.cross_entropy(output.flatten(0, 1), labels)


def of_shape(*shape: int) -> Any:
    """Make a batch of one normal input."""
    return lambda: {"input": torch.randn(shape)}


PLAIN = [
    ZooCase(
        "LSTM",
        lambda: RecurrentLanguageModel(nn.LSTM),
        lambda: {"input": tokens(3, 8)},
        next_token,
    ),
    ZooCase(
        "GRU",
        lambda: RecurrentLanguageModel(nn.GRU),
        lambda: {"input": tokens(3, 8)},
        next_token,
    ),
    ZooCase("U-Net", UNet, of_shape(3, 1, 8, 8), squares),
    ZooCase("functional", Functional, of_shape(7, 11), squares),
    ZooCase("control flow", ControlFlow, of_shape(8, 9), squares),
]
