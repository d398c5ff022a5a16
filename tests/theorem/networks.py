"""Small networks of several layers, and batches for them."""

import typing

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 3


class MLP(nn.Module):
    """Three linear layers of which the middle one is called twice, around a skip connection.

    Of every network `activations` says what follows a layer, by the layer's name.
    """

    input_shape = (5,)
    activations: typing.ClassVar = {"first": "tanh", "middle": "tanh"}

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.middle = nn.Linear(7, 7)
        self.last = nn.Linear(7, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Classify `[N, 5]`."""
        hidden = torch.tanh(self.first(x))
        hidden = hidden + torch.tanh(self.middle(torch.tanh(self.middle(hidden))))
        return self.last(hidden)


class Gain(nn.Module):
    """One number that multiplies all activations."""

    bias = None

    def __init__(self, weight: float):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return self.weight * x


class Residual(nn.Module):
    """Convolutions with a scaled skip connection, then a linear layer over all positions.

    The shift is a parameter that no local Fisher takes.
    """

    input_shape = (2, 5, 4)
    activations: typing.ClassVar = {"stem": "tanh", "body": "tanh"}

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, (3, 1), padding="same", groups=2, bias=False)
        self.gain = Gain(0.7)
        self.shift = nn.Parameter(torch.tensor(0.1))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify `[N, 2, 5, 4]`; the head sees every position as one row."""
        hidden = torch.tanh(self.stem(x))
        hidden = hidden + self.gain(torch.tanh(self.body(hidden))) + self.shift
        return self.head(hidden.flatten(2).mT).mean(1)


class ConvNet(nn.Sequential):
    """Strided, dilated, depthwise and pointwise convolutions without normalisation."""

    input_shape = (3, 7, 6)
    activations: typing.ClassVar = {"0": "silu", "2": "tanh"}

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(4, 4, 2, dilation=2, groups=4),
            nn.Tanh(),
            nn.Conv2d(4, 5, 1, bias=False),
            nn.Flatten(),
            nn.Linear(10, CLASSES),
        )


def batch(model: nn.Module, step: int, size: int = 13) -> tuple[Tensor, Tensor]:
    """Draw the inputs and labels of one step."""
    generator = torch.Generator().manual_seed(100 + step)
    shape = (size, *model.input_shape)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64) + 0.2
    return inputs, inputs.flatten(1)[:, :CLASSES].argmax(1)


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Sum over a micro-batch; the caller divides by the whole batch."""
    return F.cross_entropy(outputs, labels, reduction="sum")
