"""Loss after equal time on this machine's GPU: a GPT and a ResNet-18, plain SGD, AdamW, and SNGD.

Contenders take turns, a piece of training each, so that whatever else the machine does hits all.
What is timed is the clock, since a GPU works while the host waits.

    python -m gpu.gpu_training --seconds 20
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated

import torch
import torch.nn.functional as F
import transformers as hf
import typer
from torch import Tensor, nn

from contenders import ADAMW, LARGEST_NORM, REFERENCE, SNGD, Contender, Recipe, Trainee
from gpu.gpu_steps import Logits
from networks import CharacterGPT
from tasks import KNOWN, LENGTH, Data, Examples, labelled, text

CONTENDERS = (REFERENCE, ADAMW, SNGD)
PIECES = 4
"""Into which the time of each is cut; the loss is measured after each."""

SIDE = 64
MEASURED = 2048
"""Examples of the training set on which the loss is measured."""


@dataclass(frozen=True)
class GpuTask:
    """A network, its data, and what makes a batch of rows of them."""

    name: str
    build: Callable[[], nn.Module]
    load: Callable[[], Data]
    prepare: Callable[[Tensor], Tensor]
    batch_size: int


def gpt() -> nn.Module:
    """Two blocks of width 640, 10 million parameters."""
    return CharacterGPT(KNOWN, LENGTH, width=640)


def resnet_18() -> nn.Module:
    """ResNet-18 of `transformers`, for one channel."""
    config = hf.ResNetConfig(
        num_channels=1, depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic"
    )
    config.num_labels = 10
    return Logits(hf.ResNetForImageClassification(config))


def enlarged(rows: Tensor) -> Tensor:
    """Rows of 784 pixels as images of 64 x 64."""
    images = rows.unflatten(1, (1, 28, 28))
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear")


def as_they_are(rows: Tensor) -> Tensor:
    """Rows of characters."""
    return rows


TASKS = (
    GpuTask("character GPT, two blocks of width 640", gpt, text, as_they_are, 256),
    GpuTask("ResNet-18, images of 64 x 64", resnet_18, labelled, enlarged, 256),
)


@dataclass
class Training:
    """One contender's network on its way."""

    contender: Contender
    trainee: Trainee
    batches: Iterator[Examples]
    steps: int = 0
    losses: list[float] = field(default_factory=list)


def batches(task: GpuTask, examples: Examples) -> Iterator[Examples]:
    """Batches without end, in an order that a seed decides."""
    inputs, targets = examples
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        for rows in order[: len(order) // task.batch_size * task.batch_size].split(task.batch_size):
            yield task.prepare(inputs[rows]), targets[rows].flatten()


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


@torch.no_grad()
def loss_of(training: Training, task: GpuTask, examples: Examples) -> float:
    """The training loss on the first examples, with what evaluation mode changes."""
    network = training.trainee.network.eval()
    inputs, targets = (part[:MEASURED] for part in examples)
    logits = torch.cat([network(task.prepare(part)) for part in inputs.split(task.batch_size)])
    network.train()
    return F.cross_entropy(logits, targets.flatten()).item()


def race(task: GpuTask, seconds: float, device: torch.device) -> list[Training]:
    """Train every contender at its likeliest rate for the same seconds."""
    examples = tuple(part.to(device) for part in task.load().train)
    assert len(examples) == 2
    runs = []
    for contender in CONTENDERS:
        torch.manual_seed(0)
        recipe = Recipe(contender.rates[0], largest_norm=LARGEST_NORM)
        trainee = contender.prepare(task.build().to(device), recipe)
        run = Training(contender, trainee, batches(task, examples))
        train(run, 0.0, device)  # what is set up in a first step is not timed here
        runs.append(run)
    for _ in range(PIECES):
        for run in runs:
            train(run, seconds / PIECES, device)
            run.losses.append(loss_of(run, task, examples))
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
        for run in race(task, seconds, device) if only in task.name else ():
            losses = [f"{loss:.4g}" for loss in run.losses]
            rate = f"{run.contender.rates[0]:g}"
            cells = (task.name, run.contender.name, rate, str(run.steps), *losses)
            typer.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
