"""Models compiled with `backend="sngd"`: what their parameters get, and what is said of it."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

from sngd_compile.backend.parameter_state import REASONS, ParameterState, modules_alive, state_of
from sngd_compile.errors import SngdWarning
from sngd_compile.plan.planner import reason_to_leave, tied_names
from sngd_compile.plan.reasons import ADDED, LONE_BIAS
from sngd_compile.plan.records import ModulePlan, Place, Plan, Site, Skip
from sngd_compile.torch_private import ORIGINAL_MODULE
from sngd_compile.training.diagnosis import notes_of
from sngd_compile.training.optimizer_hooks import steps_reconstructed_only

UNSEEN = (
    "no compiled frame that trains has used it: it has not run yet, or Dynamo skipped the code "
    "(as it does with DistributedDataParallel around a model, and with a module of torch.nn that "
    "is compiled in place)"
)

HARMLESS = (ADDED, LONE_BIAS)
"""Reasons for which plain descent is natural descent, so that no warning is due."""


class CompiledModels:
    """What is known of the compiled models that are alive.

    Attributes:
        frames: Frames compiled so far.
    """

    def __init__(self) -> None:
        """Know of none."""
        # Given by entry.py, which imports this file: to know the backend here would close a circle.
        self._is_compiled: Callable[[nn.Module], bool] | None = None
        self.frames = 0
        self.reported: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        self.warned: Any = WeakTensorKeyDictionary()  # a WeakSet would compare numbers

    def watch(self, is_compiled: Callable[[nn.Module], bool]) -> None:
        """Report after optimizer steps, now that there is a backend that can tell its models."""
        if self._is_compiled is None:
            # Eager also where the optimizer's step is compiled: what it looks at is in no graph.
            register_optimizer_step_post_hook(torch.compiler.disable(self._after_step))
        self._is_compiled = is_compiled

    def includes(self, model: nn.Module) -> bool:
        """Say whether a model, or a part of it, was compiled with the backend."""
        is_compiled = self._is_compiled
        return is_compiled is not None and any(is_compiled(m) for m in model.modules())

    def models(self) -> list[nn.Module]:
        """List those that are alive."""
        is_compiled = self._is_compiled
        return [] if is_compiled is None else [m for m in modules_alive() if is_compiled(m)]

    def name_states(self, states: Iterable[ParameterState]) -> None:
        """Give Fisher layers the names that their weights have in the compiled model."""
        names: dict[int, str] = {}
        for model in self.models():
            names |= {id(p): own[0] for p, own in parameters_of(model).items()}
        for state in states:
            state.fisher.name = names.get(id(state.weight), state.fisher.name)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Warn by name of parameters that learn without a natural gradient, each once."""
        # Dynamo compiles a frame when it first runs, which may be after this optimizer's first
        # step: so each optimizer looks again once there are new frames, and not at every step.
        if self.reported.get(optimizer) == self.frames:
            return
        self.reported[optimizer] = self.frames
        # To look for compiled models takes a walk through every object of the process.
        if steps_reconstructed_only(optimizer):
            return
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        found: dict[str, str] = {}
        for model in self.models():
            for skip, parameter in skips_of(model):
                plain = parameter.grad is not None and id(parameter) in stepped
                if plain and skip.reason not in HARMLESS and parameter not in self.warned:
                    self.warned[parameter] = True
                    found[skip.name] = skip.reason
        if found:
            reasons: dict[str, list[str]] = defaultdict(list)
            for name, reason in found.items():
                reasons[reason].append(name)
            listed = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
            warnings.warn(
                f"{len(found)} parameters compiled with backend='sngd' receive plain gradients. "
                f"{listed}.",
                SngdWarning,
                stacklevel=2,
            )


COMPILED = CompiledModels()


def note_left(left: Iterable[tuple[Tensor, str]]) -> None:
    """Remember why a frame left parameters alone."""
    COMPILED.frames += 1
    for parameter, reason in left:
        if state_of(parameter) is None:
            REASONS.setdefault(parameter, reason)


def original(model: nn.Module) -> nn.Module:
    """Return the module inside a compiled one."""
    if ORIGINAL_MODULE not in model._modules:  # no dictionary of a scripted module: it has no `get`
        return model
    inner = model._modules[ORIGINAL_MODULE]
    return model if inner is None else inner


def parameters_of(model: nn.Module) -> dict[Tensor, list[str]]:
    """List all names of every parameter, compiled wrappers left out of them."""
    return {
        # A state is loaded before or after compilation: its names must be the same in both.
        parameter: [name.replace(f"{ORIGINAL_MODULE}.", "") for name in names]
        for parameter, names in tied_names(original(model)).items()
    }


def states_of(model: nn.Module) -> dict[str, ParameterState]:
    """Map the first name of every weight that has a state to it."""
    found = {names[0]: state_of(p) for p, names in parameters_of(model).items()}
    return {name: state for name, state in found.items() if state is not None}


def skips_of(model: nn.Module) -> list[tuple[Skip, Tensor]]:
    """List the parameters without a state, except the biases that joined one."""
    named = parameters_of(model)
    joined = {id(state.bias) for state in states_of(model).values() if state.bias is not None}
    return [
        (Skip(name, tuple(parameter.shape), _reason(parameter)), parameter)
        for parameter, names in named.items()
        for name in names
        if state_of(parameter) is None and id(parameter) not in joined
    ]


def _reason(parameter: Tensor) -> str:
    reason: str = reason_to_leave(parameter) or REASONS.get(parameter, UNSEEN)
    return reason


def plan_of_compiled(model: nn.Module) -> Plan:
    """Describe what every parameter of a compiled model gets, from the frames that have run."""
    named = parameters_of(model)
    sites = [_site(state, named) for state in states_of(model).values()]
    places = tuple((site, site.places[0]) for site in sites)
    skips = tuple(skip for skip, _ in skips_of(model))
    plan = Plan((ModulePlan("", original(model), None, places, skips),))
    return plan.noted(
        {
            name: notes_of(site)
            for name, state in states_of(model).items()
            for site in state.local_sites()
        }
    )


def _site(state: ParameterState, named: Mapping[Tensor, Sequence[str]]) -> Site:
    weight, bias = state.weight, state.bias
    assert weight is not None
    biases = [None] if bias is None else named[bias]
    names = named[weight]
    places = tuple(
        Place("", name, biases[min(i, len(biases) - 1)], None) for i, name in enumerate(names)
    )
    shape, config = tuple(weight.shape), state.fisher.config
    return Site(places, shape, state.spec, state.rule, config, state.note)
