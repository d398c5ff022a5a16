"""Ways to train a network, each as one function that takes a step."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

import torch
import typer
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import LBFGS, SGD, AdamW, Muon, Optimizer

import sngd_compile as sngd

Step = Callable[[Tensor, Tensor], Tensor]
"""Trains on one batch and returns its loss."""

LARGEST_NORM = 1.0
RATE_BESIDE_MUON = 3e-3
LARGEST_FISHER_NORM = 1.0
"""What bounds the natural gradients of SNGD and of K-FAC, all layers together."""


Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""What is minimised, of a network, inputs and targets."""


@dataclass(frozen=True)
class Recipe:
    """What the task asks of every contender.

    Args:
        rate: Learning rate.
        criterion: The loss of outputs and targets.
        largest_norm: Of the gradient.
        objective: What is minimised where that is no loss of the outputs alone.
    """

    rate: float
    criterion: nn.Module = field(default_factory=nn.CrossEntropyLoss)
    largest_norm: float = LARGEST_NORM
    objective: Objective | None = None

    def loss(self, network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """What is minimised."""
        if self.objective is not None:
            return self.objective(network, inputs, targets)
        loss: Tensor = self.criterion(network(inputs), targets)
        return loss


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
        fits: Says of a model whether it can train that; without it, any.
        needs_outputs: Whether it reads the loss apart, so that this has to be one of the outputs.
        needs_all_examples: Whether each step has to see the same examples, all of them.
    """

    name: str
    prepare: Callable[[nn.Module, Recipe], Trainee]
    rates: tuple[float, ...]
    package: str | None = None
    fits: Callable[[nn.Module], bool] | None = None
    needs_outputs: bool = False
    needs_all_examples: bool = False

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
        loss = recipe.loss(network, inputs, targets)
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
    optimizer = SGD(model.parameters(), lr=recipe.rate, momentum=0.9, fused=True)
    return usual_loop(model, [optimizer], recipe)


def descent(network: nn.Module, recipe: Recipe) -> Trainee:
    """SGD with momentum on a reconstructed network."""
    parameters = network.parameters()
    optimizer = SGD(parameters, lr=recipe.rate, momentum=0.9, nesterov=True, fused=True)
    return replace(usual_loop(network, [optimizer], recipe), finish=sngd.fold)


def in_trust_region(network: nn.Module, recipe: Recipe) -> Trainee:
    """The same, whose steps have a largest Fisher norm, all layers together."""
    return descent(network, replace(recipe, largest_norm=LARGEST_FISHER_NORM))


def natural_gradient(model: nn.Module, recipe: Recipe) -> Trainee:
    """The default configuration, in the loop that goes with it: it clips nothing."""
    return descent(sngd.reconstruct(model), replace(recipe, largest_norm=math.inf))


def adamw(model: nn.Module, recipe: Recipe) -> Trainee:
    """AdamW with PyTorch's defaults, in its fused form."""
    return usual_loop(model, [AdamW(model.parameters(), lr=recipe.rate, fused=True)], recipe)


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """All but embeddings; the head is last."""
    tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    return [p for p in model.parameters() if p.dim() == 2 and p not in tables]


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices that Muon's users give it: not the head."""
    return matrices(model)[:-1]


def has_hidden_matrices(model: nn.Module) -> bool:
    """Whether there is anything for Muon beside the head."""
    return bool(hidden_matrices(model))


def muon(model: nn.Module, recipe: Recipe) -> Trainee:
    """Muon for hidden matrices; AdamW at a rate of its own, as its users have it, for the rest."""
    return with_muon(model, hidden_matrices(model), recipe)


def muon_with_head(model: nn.Module, recipe: Recipe) -> Trainee:
    """Muon for the head too."""
    return with_muon(model, matrices(model), recipe)


def with_muon(model: nn.Module, spread: list[nn.Parameter], recipe: Recipe) -> Trainee:
    """Muon for some matrices and AdamW for the rest."""
    muon = Muon(spread, lr=recipe.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    taken = set(spread)
    others = [p for p in model.parameters() if p not in taken]
    beside = AdamW(others, lr=RATE_BESIDE_MUON, fused=True)
    return usual_loop(model, [muon, beside], recipe)


def muon_on_white_inputs(model: nn.Module, recipe: Recipe) -> Trainee:
    """The same division, and the hidden matrices reconstructed with roots of a gain of one."""
    hidden = set(hidden_matrices(model))
    names = [name for name, parameter in model.named_parameters() if parameter in hidden]
    left = {site.name: None for site in sngd.explain(model).sites if site.name not in names}
    net = sngd.reconstruct(model, sngd.Config.muon(), overrides=left)
    trainee = with_muon(net, [net.get_parameter(name) for name in names], recipe)
    return replace(trainee, finish=sngd.fold)


def lbfgs(model: nn.Module, recipe: Recipe) -> Trainee:
    """L-BFGS with a line search; ten of its iterations are one step."""
    optimizer = LBFGS(
        model.parameters(), lr=recipe.rate, max_iter=10, line_search_fn="strong_wolfe"
    )

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = recipe.loss(model, inputs, targets)
            loss.backward()
            return loss

        found: Tensor = optimizer.step(closure)
        return found.detach()

    return Trainee(model, step)


SGD_RATES = (0.1, 0.03, 0.3, 0.01)
ADAMW_RATES = (1e-3, 3e-3, 3e-4, 1e-2)
MUON_RATES = (0.02, 0.01, 0.005, 0.04)
LBFGS_RATES = (1.0, 0.3, 0.1, 3.0)
NATURAL_RATES = (0.03, 0.1, 0.01, 0.3)
REFERENCE = Contender("SGD", plain_sgd, SGD_RATES)
SNGD_RATES = (0.03, 0.06, 0.015, 0.12)
SNGD = Contender("SNGD", natural_gradient, SNGD_RATES)
"""At the first of its rates it is what the documentation recommends."""
ADAMW = Contender("AdamW", adamw, ADAMW_RATES)
MUON = Contender("Muon", muon, MUON_RATES, fits=has_hidden_matrices)
NATURAL_MUON = Contender(
    "Muon, reconstructed", muon_on_white_inputs, MUON_RATES, fits=has_hidden_matrices
)
MUON_WITH_HEAD = Contender("Muon, head too", muon_with_head, MUON_RATES)
FULL_BATCH = Contender("L-BFGS", lbfgs, LBFGS_RATES, needs_all_examples=True)
BUILT_IN = (REFERENCE, SNGD, ADAMW, MUON)


def limit_to_one_thread() -> None:
    """Time on one thread: times vary less, and small networks gain little from a second one.

    Subnormal numbers are flushed to zero: the gradients of a network that fits its data perfectly
    are full of them, and a product of them takes many times as long, whoever has trained it.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def chosen(
    only: Sequence[str] | None, among: Sequence[Contender], always: Contender
) -> list[Contender]:
    """The one that is always there, and those whose names contain one of the given texts."""
    wanted = [text.lower() for text in only or [""]]
    unknown = [text for text in wanted if not any(text in c.name.lower() for c in among)]
    if unknown:
        raise typer.BadParameter(f"no contender is called {unknown[0]!r}")
    return [c for c in among if c is always or any(text in c.name.lower() for text in wanted)]
