"""A task that trains in milliseconds, for the tests of the convergence study."""

import torch
from torch import nn

from tasks import Data, Task


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def learnable() -> Data:
    """Three classes that a linear map tells apart."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 5, generator=generator)
    labels = (inputs @ torch.randn(5, 3, generator=generator)).argmax(1)
    return Data("learnable", (inputs[:60], labels[:60]), (inputs[60:], labels[60:]))


TINY = Task("tiny", "tiny network", normalised, learnable, 16, 20, nn.CrossEntropyLoss())
DATA = learnable()
