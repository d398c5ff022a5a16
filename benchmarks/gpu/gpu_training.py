"""Loss after equal time on this machine's GPU: a GPT and a ResNet-18, plain SGD, AdamW, and SNGD.

Contenders take turns, a piece of training each, so that whatever else the machine does hits all.
What is timed is the clock, since a GPU works while the host waits.

    python -m gpu.gpu_training --seconds 20
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
import transformers as hf
import typer
from torch import nn

from contenders import ADAMW, LARGEST_NORM, REFERENCE, SNGD, Contender, Trainee
from gpu.gpu_steps import Logits
from networks import CharacterGPT
from tasks import KNOWN, LABELS, LENGTH, Examples, Task, labelled, text

CONTENDERS = (REFERENCE, ADAMW, SNGD)
PIECES = 4
"""Into which the time of each is cut; the loss is measured after each."""


def gpt() -> nn.Module:
    """Two blocks of width 640, 10 million parameters."""
    return CharacterGPT(KNOWN, LENGTH, width=640)


def resnet_18() -> nn.Module:
    """ResNet-18 of `transformers`, for rows of 28 x 28 pixels, enlarged."""
    config = hf.ResNetConfig(
        num_channels=1, depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic"
    )
    config.num_labels = 10
    enlarged = nn.Sequential(nn.Unflatten(1, (1, 28, 28)), nn.Upsample(64, mode="bilinear"))
    return nn.Sequential(enlarged, Logits(hf.ResNetForImageClassification(config)))


MEASURED = 2048
"""Examples of the training set on which the loss is measured."""

TASKS = (
    Task(
        "gpt",
        "character GPT, two blocks of width 640",
        gpt,
        text,
        batch_size=256,
        steps=0,  # the time is given
        criterion=LABELS,
        measured=MEASURED,
        largest_norm=LARGEST_NORM,
    ),
    Task(
        "resnet",
        "ResNet-18, images of 64 x 64",
        resnet_18,
        labelled,
        batch_size=256,
        steps=0,
        criterion=LABELS,
        measured=MEASURED,
        largest_norm=LARGEST_NORM,
    ),
)


@dataclass
class Training:
    """One contender's network on its way."""

    contender: Contender
    trainee: Trainee
    batches: Iterator[Examples]
    steps: int = 0
    losses: list[float] = field(default_factory=list)


def waited(device: torch.device) -> float:
    """The clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def train(training: Training, seconds: float, device: torch.device) -> None:
    """Train for some seconds; at least a step."""
    end = waited(device) + seconds
    while True:
        training.trainee.step(*next(training.batches))
        training.steps += 1
        if waited(device) >= end:
            return


def race(task: Task, seconds: float, device: torch.device) -> list[Training]:
    """Train every contender at its likeliest rate for the same seconds."""
    data = task.load()
    inputs, targets = (part.to(device) for part in data.train)
    data = replace(data, train=(inputs, targets))
    runs = []
    for contender in CONTENDERS:
        trainee = contender.prepare(task.model(0).to(device), task.recipe(contender.rates[0]))
        run = Training(contender, trainee, task.batches(data, 0))
        train(run, 0.0, device)  # what is set up in a first step is not timed here
        runs.append(run)
    for _ in range(PIECES):
        for run in runs:
            train(run, seconds / PIECES, device)
            run.losses.append(task.loss(run.trainee.network, data.train))
            run.trainee.network.train()
    return runs


def main(
    seconds: Annotated[float, typer.Option(help="Of each contender on each task.")] = 20.0,
    only: Annotated[str, typer.Option(help="Part of a task's name.")] = "",
) -> None:
    """Train and print the losses."""
    if not torch.cuda.is_available():
        sys.exit("gpu_training needs a GPU; torch sees none")
    device = torch.device("cuda")
    typer.echo(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, one seed\n")
    parts = [f"loss after {seconds * (n + 1) / PIECES:g} s" for n in range(PIECES)]
    header = ("task", "contender", "rate", "steps", *parts)
    typer.echo(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for task in TASKS:
        for run in race(task, seconds, device) if only in task.title else ():
            losses = [f"{loss:.4g}" for loss in run.losses]
            rate = f"{run.contender.rates[0]:g}"
            cells = (task.title, run.contender.name, rate, str(run.steps), *losses)
            typer.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
