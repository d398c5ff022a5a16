"""The networks of the convergence study, small enough for one CPU thread."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads import CLASSES

SIDE = 28


def conv_net(channels: int = 1, side: int = SIDE) -> nn.Module:
    """Convolutions of 8, 16 and 32 channels over images as rows, then a linear layer."""
    return nn.Sequential(
        nn.Unflatten(1, (channels, side, side)),
        nn.Conv2d(channels, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (side // 4) ** 2, CLASSES),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and a way round them."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, wider, 3, stride, 1, bias=False),
            nn.BatchNorm2d(wider),
            nn.ReLU(),
            nn.Conv2d(wider, wider, 3, 1, 1, bias=False),
            nn.BatchNorm2d(wider),
        )
        self.way_round = nn.Sequential(
            nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Add both and rectify."""
        return F.relu(self.body(inputs) + self.way_round(inputs))


def resnet(channels: int = 1, side: int = SIDE) -> nn.Module:
    """A stem of 8 channels and residual blocks of 8, 16 and 32, with BatchNorm throughout."""
    return nn.Sequential(
        nn.Unflatten(1, (channels, side, side)),
        nn.Conv2d(channels, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Residual(8, 8, 1),
        Residual(8, 16, 2),
        Residual(16, 32, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def autoencoder(encoder: Sequence[int] = (784, 400, 200, 100, 30)) -> nn.Module:
    """These widths and back, ReLU but for the code, which is in the middle, and the pixels."""
    widths = (*encoder, *encoder[-2::-1])
    layers: list[nn.Module] = []
    for number, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(width_in, width_out))
        if number not in (len(encoder) - 2, len(widths) - 2):
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class CharacterLSTM(nn.Module):
    """One LSTM between an embedding and a linear layer; logits of all positions, `[N T, V]`."""

    def __init__(self, vocabulary: int, width: int = 96) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, characters: Tensor) -> Tensor:
        """Predict the next character at every position."""
        logits: Tensor = self.head(self.lstm(self.embedding(characters))[0])
        return logits.flatten(0, 1)


class Block(nn.Module):
    """Causal self-attention and an MLP, each after a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Add what attention and MLP say."""
        projected = self.queries_keys_values(self.before_attention(inputs))
        split = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(split[0], split[1], split[2], is_causal=True)
        inputs = inputs + self.out(attended.transpose(1, 2).flatten(2))
        added: Tensor = inputs + self.mlp(self.before_mlp(inputs))
        return added


class CharacterGPT(nn.Module):
    """A transformer of two blocks; logits of all positions, `[N T, V]`."""

    def __init__(self, vocabulary: int, length: int, width: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(Block(width, 4), Block(width, 4))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, characters: Tensor) -> Tensor:
        """Predict the next character at every position."""
        places = torch.arange(characters.shape[1], device=characters.device)
        hidden = self.blocks(self.tokens(characters) + self.positions(places))
        logits: Tensor = self.head(self.norm(hidden))
        return logits.flatten(0, 1)
