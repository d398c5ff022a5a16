"""Ways to train a network, each as one function that takes a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW, Muon, Optimizer

import sngd_compile as sngd

Step = Callable[[Tensor, Tensor], Tensor]
"""Trains on one batch and returns its loss."""

LARGEST_NORM = 1.0


@dataclass(frozen=True)
class Trainee:
    """A network and the function that trains it."""

    network: nn.Module
    step: Step


@dataclass(frozen=True)
class Contender:
    """A way to train, and the package it needs beyond torch, by its import name."""

    name: str
    prepare: Callable[[nn.Module], Trainee]
    package: str | None = None

    @property
    def installed(self) -> bool:
        """Whether its package can be imported."""
        return self.package is None or find_spec(self.package) is not None


def usual_loop(network: nn.Module, optimizers: Sequence[Optimizer]) -> Trainee:
    """The training step that every tutorial shows, with clipped gradients."""

    def step(inputs: Tensor, labels: Tensor) -> Tensor:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        clip_grad_norm_(network.parameters(), LARGEST_NORM)
        for optimizer in optimizers:
            optimizer.step()
        return loss.detach()

    return Trainee(network, step)


def plain_sgd(model: nn.Module) -> Trainee:
    """SGD with momentum: what all others are compared with."""
    return usual_loop(model, [SGD(model.parameters(), lr=0.03, momentum=0.9)])


def natural_gradient(model: nn.Module) -> Trainee:
    """The same SGD on the reconstructed network, default configuration."""
    network = sngd.reconstruct(model)
    return usual_loop(network, [SGD(network.parameters(), lr=0.03, momentum=0.9)])


def adamw(model: nn.Module) -> Trainee:
    """AdamW with PyTorch's defaults."""
    return usual_loop(model, [AdamW(model.parameters())])


def muon(model: nn.Module) -> Trainee:
    """Muon for the matrices, AdamW for all that is not one."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    return usual_loop(model, [Muon(matrices), AdamW(others)])


REFERENCE = Contender("SGD", plain_sgd)
SNGD = Contender("SNGD", natural_gradient)
BUILT_IN = (REFERENCE, SNGD, Contender("AdamW", adamw), Contender("Muon (torch, bfloat16)", muon))


def limit_to_one_thread() -> None:
    """Time on one thread: times vary less, and small networks gain little from a second one."""
    torch.set_num_threads(1)
