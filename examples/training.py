"""Three ways to train one network, side by side on the same batches."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from data import Dataset

MEASURED_EXAMPLES = 5_000  # of the training set, on which its loss is measured


@dataclass(frozen=True)
class Method:
    """A way to train: what it does to a network before and after, and rates to try."""

    name: str
    rates: tuple[float, ...]
    prepare: Callable[[nn.Module, float], tuple[nn.Module, torch.optim.Optimizer]]
    finish: Callable[[nn.Module], nn.Module] = lambda network: network


@dataclass(frozen=True)
class Point:
    """How a run does after some steps: measured off the clock."""

    step: int
    training_loss: float
    test_accuracy: float


@dataclass
class Run:
    """One network in training, and the points at which it was measured."""

    method: Method
    rate: float
    network: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int = 0
    seconds: float = 0.0
    points: list[Point] = field(default_factory=list)
    history: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def step(self, inputs: Tensor, labels: Tensor) -> None:
        """Takes one optimizer step, on the clock."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        F.cross_entropy(self.network(inputs), labels).backward()
        self.optimizer.step()
        self.seconds += time.perf_counter() - start
        self.steps += 1

    @torch.no_grad()
    def measure(self, data: Dataset) -> None:
        """Adds a point: how the finished network would do now, and what its layers are like."""
        if sngd.fisher_layers(self.network):
            self.history.append((self.steps, sngd.metrics(self.network)))
        finished = self.method.finish(self.network)
        outputs = finished(data.train_inputs[:MEASURED_EXAMPLES])
        loss = F.cross_entropy(outputs, data.train_labels[:MEASURED_EXAMPLES])
        correct = finished(data.test_inputs).argmax(dim=1) == data.test_labels
        self.points.append(Point(self.steps, loss.item(), correct.float().mean().item()))

    @property
    def seconds_per_step(self) -> float:
        """The mean time of a step.

        Runs that take turns share the machine's moods in the mean: steps times the mean compares
        them fairly, and their clocks, read at different times, would not.
        """
        return self.seconds / self.steps

    @property
    def loss(self) -> float:
        """The training loss at the last point; infinite for a run that diverged."""
        loss = self.points[-1].training_loss
        return loss if math.isfinite(loss) else math.inf


def sgd(model: nn.Module, rate: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Plain SGD with momentum."""
    return model, torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)


def adamw(model: nn.Module, rate: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """AdamW with PyTorch's defaults."""
    return model, torch.optim.AdamW(model.parameters(), lr=rate)


def natural(
    model: nn.Module, rate: float, config: sngd.Config | None = None
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Natural gradient descent: SGD on the reconstructed network."""
    network = sngd.reconstruct(model, config)
    return network, torch.optim.SGD(network.parameters(), rate, momentum=0.9, nesterov=True)


METHODS = (
    Method("SGD", (0.01, 0.03, 0.1, 0.3), sgd),
    Method("AdamW", (3e-4, 1e-3, 3e-3, 1e-2), adamw),
    Method("SNGD", (0.003, 0.01, 0.03, 0.1), natural, sngd.fold),
)


def mlp(inputs: int, seed: int) -> nn.Sequential:
    """The paper's network, inputs-80-80-80-10 with ReLU; the same weights for the same seed."""
    torch.manual_seed(seed)
    widths = (inputs, 80, 80, 80)
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 10))


def start(method: Method, rate: float, data: Dataset, seed: int) -> Run:
    """A run that has not taken a step yet."""
    model = mlp(data.train_inputs.shape[1], seed)
    return Run(method, rate, *method.prepare(model, rate))


def batches(data: Dataset, size: int, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of some epochs, each epoch in an order of its own that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(data.train_labels), generator=generator)
        for chosen in order[: len(order) // size * size].split(size):
            yield data.train_inputs[chosen], data.train_labels[chosen]
