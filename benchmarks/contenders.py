"""Ways to train a network, each as one function that takes a step."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec

import torch
import typer
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW, Muon, Optimizer

import sngd_compile as sngd

Step = Callable[[Tensor, Tensor], Tensor]
"""Trains on one batch and returns its loss."""

MEAN = sngd.Config(over_outputs="mean")
LARGEST_NORM = 1.0
LARGEST_FISHER_NORM = 1.0
"""SNGD's trust region: on reconstructed parameters, clipping bounds the norm of the Fisher."""

LARGEST_NORM_OF_A_LAYER = 0.5
ALWAYS_EXCEEDED = 0.01
"""A bound below the norm of every gradient in training."""


@dataclass(frozen=True)
class Recipe:
    """What the task asks of every contender: a learning rate, a loss, the largest gradient norm."""

    rate: float
    criterion: nn.Module = field(default_factory=nn.CrossEntropyLoss)
    largest_norm: float = LARGEST_NORM


@dataclass(frozen=True)
class Trainee:
    """A network, the function that trains it, and what makes the plain network of it again."""

    network: nn.Module
    step: Step
    finish: Callable[[nn.Module], nn.Module] = lambda network: network


@dataclass(frozen=True)
class Contender:
    """A way to train.

    Args:
        name: For tables.
        prepare: Makes the trainee; it may change the model.
        rates: Learning rates to try, the likeliest first.
        package: What it needs beyond torch, by its import name.
    """

    name: str
    prepare: Callable[[nn.Module, Recipe], Trainee]
    rates: tuple[float, ...]
    package: str | None = None

    @property
    def installed(self) -> bool:
        """Whether its package can be imported."""
        return self.package is None or find_spec(self.package) is not None


def usual_loop(
    network: nn.Module,
    optimizers: Sequence[Optimizer],
    recipe: Recipe,
    bounded: Sequence[Iterable[Tensor]] = (),
) -> Trainee:
    """The training step that every tutorial shows, gradients clipped together or in groups."""

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss: Tensor = recipe.criterion(network(inputs), targets)
        loss.backward()
        if math.isfinite(recipe.largest_norm):
            for parameters in bounded or (network.parameters(),):
                clip_grad_norm_(parameters, recipe.largest_norm)
        for optimizer in optimizers:
            optimizer.step()
        return loss.detach()

    return Trainee(network, step)


def plain_sgd(model: nn.Module, recipe: Recipe) -> Trainee:
    """SGD with momentum: what all others are compared with."""
    return usual_loop(model, [SGD(model.parameters(), lr=recipe.rate, momentum=0.9)], recipe)


def in_trust_region(
    network: nn.Module,
    recipe: Recipe,
    nesterov: bool = False,
    largest_norm: float = LARGEST_FISHER_NORM,
) -> Trainee:
    """SGD with momentum on a reconstructed network, whose steps have a largest Fisher norm."""
    optimizer = SGD(network.parameters(), lr=recipe.rate, momentum=0.9, nesterov=nesterov)
    clipped = replace(recipe, largest_norm=largest_norm)
    return replace(usual_loop(network, [optimizer], clipped), finish=sngd.fold)


def natural_gradient(model: nn.Module, recipe: Recipe) -> Trainee:
    """The default configuration."""
    return in_trust_region(sngd.reconstruct(model), recipe)


def with_nesterov(config: sngd.Config, model: nn.Module, recipe: Recipe) -> Trainee:
    """Nesterov's momentum on the network of a configuration."""
    return in_trust_region(sngd.reconstruct(model, config), recipe, nesterov=True)


def of_one_length(model: nn.Module, recipe: Recipe) -> Trainee:
    """A bound that every gradient exceeds, so that all steps have one Fisher norm."""
    return in_trust_region(sngd.reconstruct(model), recipe, True, ALWAYS_EXCEEDED)


def with_frequent_refreshes(model: nn.Module, recipe: Recipe) -> Trainee:
    """The mean over outputs, refreshed five times as often."""
    frequent = MEAN.replace(refresh_every=20, observe_every=10)
    return in_trust_region(sngd.reconstruct(model, frequent), recipe, nesterov=True)


def bounded_layer_by_layer(model: nn.Module, recipe: Recipe) -> Trainee:
    """A trust region for every layer instead of one for all."""
    network = sngd.reconstruct(model, MEAN.replace(damping_rel_trace=3e-3))
    optimizer = SGD(network.parameters(), lr=recipe.rate, momentum=0.9, nesterov=True)
    layers = [own for m in network.modules() if (own := list(m.parameters(recurse=False)))]
    clipped = replace(recipe, largest_norm=LARGEST_NORM_OF_A_LAYER)
    return replace(usual_loop(network, [optimizer], clipped, layers), finish=sngd.fold)


def adamw(model: nn.Module, recipe: Recipe) -> Trainee:
    """AdamW with PyTorch's defaults."""
    return usual_loop(model, [AdamW(model.parameters(), lr=recipe.rate)], recipe)


def muon(model: nn.Module, recipe: Recipe) -> Trainee:
    """Muon for the matrices, AdamW for the rest and for embeddings, at one rate and one decay."""
    tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in model.parameters() if p.dim() == 2 and p not in tables]
    others = [p for p in model.parameters() if p.dim() != 2 or p in tables]
    spread = Muon(matrices, lr=recipe.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return usual_loop(model, [spread, AdamW(others, lr=recipe.rate)], recipe)


SGD_RATES = (0.1, 0.03, 0.3, 0.01)
ADAMW_RATES = (1e-3, 3e-3, 3e-4, 1e-2)
MUON_RATES = (3e-3, 1e-2, 1e-3, 3e-2)
NATURAL_RATES = (0.03, 0.1, 0.01, 0.3)
LENGTH_RATES = (3.0, 10.0, 1.0, 30.0)
MEAN_RATES = (0.003, 0.01, 0.001, 0.03)
DAMPED_RATES = (0.01, 0.03, 0.003, 0.1)
FREQUENT_RATES = (0.01, 0.004, 0.02, 0.002)
ROBUST_RATES = (0.018, 0.01, 0.03, 0.05)

REFERENCE = Contender("SGD", plain_sgd, SGD_RATES)
SNGD = Contender("SNGD", natural_gradient, NATURAL_RATES)
DAMPED = Contender(
    "SNGD, mean, damping 1e-2",
    partial(with_nesterov, MEAN.replace(damping_rel_trace=1e-2)),
    DAMPED_RATES,
)
ROBUST = Contender("SNGD, robust", partial(with_nesterov, sngd.Config.robust()), ROBUST_RATES)
"""The configuration whose best rates differ least."""

NESTEROV = (
    Contender("SNGD, Nesterov", partial(with_nesterov, sngd.Config()), NATURAL_RATES),
    Contender("SNGD, steps of one length", of_one_length, LENGTH_RATES),
    Contender("SNGD, mean over outputs", partial(with_nesterov, MEAN), MEAN_RATES),
    Contender(
        "SNGD, mean, exact factors",
        partial(with_nesterov, MEAN.replace(rank=None)),
        MEAN_RATES,
    ),
    Contender("SNGD, mean, layer by layer", bounded_layer_by_layer, DAMPED_RATES),
    Contender("SNGD, mean, frequent refreshes", with_frequent_refreshes, FREQUENT_RATES),
    DAMPED,
)
"""With Nesterov's momentum, each of one configuration."""

ADAMW = Contender("AdamW", adamw, ADAMW_RATES)
MUON = Contender("Muon (torch, bfloat16)", muon, MUON_RATES)
BUILT_IN = (REFERENCE, SNGD, ADAMW, MUON)


def limit_to_one_thread() -> None:
    """Time on one thread: times vary less, and small networks gain little from a second one."""
    torch.set_num_threads(1)


def chosen(
    only: Sequence[str] | None, among: Sequence[Contender], always: Contender
) -> list[Contender]:
    """The one that is always there, and those whose names contain one of the given texts."""
    wanted = [text.lower() for text in only or [""]]
    unknown = [text for text in wanted if not any(text in c.name.lower() for c in among)]
    if unknown:
        raise typer.BadParameter(f"no contender is called {unknown[0]!r}")
    return [c for c in among if c is always or any(text in c.name.lower() for text in wanted)]
