"""A task that trains in milliseconds, for the tests of the convergence study."""

from collections.abc import Callable

import torch
import typer
from torch import nn
from typer.testing import CliRunner, Result

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


def invoke(main: Callable[..., None], *options: object) -> Result:
    """Runs what `typer.run` would make of a function."""
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(option) for option in options])
