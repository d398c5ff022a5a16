"""What the convergence study trains: networks, data in a seeded order, and how good is measured."""

import math
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

import poisson
import tabular
from contenders import Contender, Objective, Recipe
from data import DEBIAN_FASHION_MNIST, Dataset, Name, load
from networks import CharacterGPT, CharacterLSTM, autoencoder, conv_net, resnet
from workloads import WORKLOADS, Workload, mlp

Examples = tuple[Tensor, Tensor]
"""Inputs and targets, one row each."""

LENGTH = 32
CHARACTERS = 500_000
KNOWN = 128
"""Characters of ASCII: what a text model knows."""


@dataclass(frozen=True)
class Data:
    """Examples to train on and examples to judge by."""

    name: str
    train: Examples
    test: Examples


@dataclass(frozen=True)
class Metric:
    """What a finished network is judged by, on the examples for that."""

    name: str
    measure: Callable[[nn.Module, Examples], float]


@dataclass(frozen=True)
class Task:
    """A network, its data and its loss.

    Args:
        name: As on the command line.
        title: What it is, in words.
        build: Makes the network, from the global generator.
        load: The data.
        batch_size: Examples a step.
        steps: Of SGD; every contender has the time that these take.
        criterion: The loss.
        measured: Examples on which the training loss is measured.
        largest_norm: Of the gradients of first-order contenders; clipping is the custom in some.
        objective: What is minimised where that is no loss of the outputs alone.
        metric: What networks are judged by in the end; without one the accuracy, or the loss.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    load: Callable[[], Data]
    batch_size: int
    steps: int
    criterion: nn.Module
    measured: int = 1_000
    largest_norm: float = math.inf
    objective: Objective | None = None
    metric: Metric | None = None

    def recipe(self, rate: float) -> Recipe:
        """What it asks of a contender at a learning rate."""
        return Recipe(rate, self.criterion, self.largest_norm, self.objective)

    def model(self, seed: int) -> nn.Module:
        """The network with the weights of a seed."""
        torch.manual_seed(seed)
        return self.build()

    def batches(self, data: Data, seed: int) -> Iterator[Examples]:
        """Batches without end, each epoch in an order of its own that the seed decides."""
        generator = torch.Generator().manual_seed(seed)
        inputs, targets = data.train
        size = min(self.batch_size, len(inputs))
        while True:
            order = torch.randperm(len(inputs), generator=generator)
            for rows in order[: len(order) // size * size].split(size):
                yield inputs[rows], in_rows(targets[rows])

    def sees_all(self, data: Data) -> bool:
        """Whether every step has all examples."""
        return self.batch_size >= len(data.train[0])

    def can_have(self, contender: Contender, data: Data) -> bool:
        """Whether a contender can take part."""
        if contender.fits is not None and not contender.fits(self.model(0)):
            return False
        has_outputs = self.objective is None or not contender.needs_outputs
        return has_outputs and (self.sees_all(data) or not contender.needs_all_examples)

    @property
    def judged(self) -> str:
        """What the score is."""
        if self.metric is not None:
            return self.metric.name
        return "test accuracy" if self.classifies else "test loss"

    @property
    def classifies(self) -> bool:
        """Whether accuracy says how good a network is; otherwise its loss does."""
        return isinstance(self.criterion, nn.CrossEntropyLoss)

    @torch.no_grad()
    def loss(self, network: nn.Module, examples: Examples) -> float:
        """The loss on the first examples, as the finished network would have it."""
        inputs, targets = (part[: self.measured] for part in examples)
        return self.recipe(0.0).loss(network.eval(), inputs, in_rows(targets)).item()

    @torch.no_grad()
    def score(self, network: nn.Module, examples: Examples) -> float:
        """The metric; without one the accuracy, or the loss where nothing is classified."""
        if self.metric is not None:
            return self.metric.measure(network.eval(), examples)
        if not self.classifies:
            return self.loss(network, examples)
        inputs, targets = examples
        found = torch.cat([network.eval()(part).argmax(1) for part in inputs.split(1000)])
        return (found == in_rows(targets)).float().mean().item()


def in_rows(targets: Tensor) -> Tensor:
    """Labels of all positions, one after another; pixels as they are."""
    return targets if targets.is_floating_point() else targets.flatten()


@cache
def images() -> Dataset:
    """Fashion-MNIST where Debian's package has put it, else scikit-learn's digits, enlarged."""
    if DEBIAN_FASHION_MNIST.exists():
        return load(Name.FASHION_MNIST)
    small = load(Name.DIGITS)
    train, test = (enlarged(part) for part in (small.train_inputs, small.test_inputs))
    return Dataset(Name.DIGITS, train, small.train_labels, test, small.test_labels)


def enlarged(digits: Tensor) -> Tensor:
    """Images of 8 x 8 as images of 28 x 28, as rows."""
    pictures = digits.unflatten(1, (1, 8, 8))
    return nn.functional.interpolate(pictures, (28, 28), mode="bilinear").flatten(1)


def with_labels(data: Dataset) -> Data:
    """Inputs and their classes."""
    return Data(
        data.name, (data.train_inputs, data.train_labels), (data.test_inputs, data.test_labels)
    )


def labelled() -> Data:
    """Images and their classes."""
    return with_labels(images())


def unlabelled() -> Data:
    """Images, between 0 and 1, that are their own targets."""
    data = images()
    lowest, highest = data.train_inputs.min(), data.train_inputs.max()
    train, test = (
        (part - lowest) / (highest - lowest) for part in (data.train_inputs, data.test_inputs)
    )
    return Data(data.name, (train, train), (test, test))


@cache
def text() -> Data:
    """The sources of Python's standard library, in pieces; the last tenth is for tests."""
    found = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    # Not written but generated, on every machine another: it would be most of the last tenth.
    files = [path for path in found if not path.name.startswith("_sysconfigdata")]
    content = "\n".join(path.read_text("utf-8", "ignore") for path in files)
    letters = content.encode("ascii", "ignore")[:CHARACTERS]
    codes = torch.frombuffer(bytearray(letters), dtype=torch.uint8).long()
    pieces = codes[: len(codes) // (LENGTH + 1) * (LENGTH + 1)].unflatten(0, (-1, LENGTH + 1))
    first = len(pieces) * 9 // 10
    # Shuffled: neighbours in a file are alike, and the first of them are what is measured.
    train = pieces[torch.randperm(first, generator=torch.Generator().manual_seed(0))]
    test = pieces[first:]
    return Data(
        "Python's standard library",
        (train[:, :-1], train[:, 1:].contiguous()),
        (test[:, :-1], test[:, 1:].contiguous()),
    )


def points() -> Data:
    """Points of the unit square and its border."""
    return Data("points of the unit square", *poisson.examples())


@cache
def table() -> Data:
    """Rows of a table of numbers."""
    return Data("Friedman's function, heavy tails", *tabular.examples())


LABELS = nn.CrossEntropyLoss()


def of_characters(name: str, title: str, build: Callable[[], nn.Module]) -> Task:
    """The task of predicting the next character; gradients are clipped, as is the custom there."""
    return Task(name, title, build, text, 32, 400, LABELS, measured=300, largest_norm=1.0)


TASKS = (
    Task("mlp", "MLP 784-512-512-10", mlp, labelled, 256, 400, LABELS),
    Task("conv", "conv net 8-16-32", conv_net, labelled, 128, 500, LABELS),
    Task("resnet", "ResNet 8-16-32 with BatchNorm", resnet, labelled, 128, 300, LABELS),
    of_characters("lstm", "character LSTM of width 96", lambda: CharacterLSTM(KNOWN)),
    of_characters(
        "gpt", "character GPT, two blocks of width 64", lambda: CharacterGPT(KNOWN, LENGTH)
    ),
    Task(
        "autoencoder",
        "autoencoder 784-400-200-100-30",
        autoencoder,
        unlabelled,
        256,
        400,
        nn.MSELoss(),
    ),
    Task(
        "pinn",
        "tanh MLP 2-64-64-64-1 for Poisson's equation",
        poisson.network,
        points,
        poisson.POINTS,
        400,
        nn.MSELoss(),
        objective=poisson.equation,
        metric=Metric("relative error", poisson.relative_error),
    ),
    Task(
        "tabular",
        "residual MLP of width 128",
        tabular.network,
        table,
        256,
        600,
        nn.MSELoss(),
        metric=Metric("R^2 of the test", tabular.explained),
    ),
)


@dataclass(frozen=True)
class TaskWorkload(Workload):
    """A task whose steps are timed like those of the other networks."""

    task: Task

    def batches(self) -> Iterator[Examples]:
        """Its data in a seeded order."""
        return self.task.batches(self.task.load(), 0)

    @property
    def criterion(self) -> nn.Module:
        """Its loss."""
        return self.task.criterion


def of_task(task: Task, bar: float = math.inf) -> Workload:
    """Time a task; `bar` is the largest step time over plain SGD's wanted."""
    return TaskWorkload(task.title, task.build, (), task.batch_size, bar, task)


BARS = {"conv": 1.10, "resnet": 1.15, "lstm": 1.15, "gpt": 1.15, "autoencoder": 1.40}

TIMED = (*WORKLOADS, *(of_task(task, BARS[task.name]) for task in TASKS if task.name in BARS))
"""Networks whose steps are timed."""
