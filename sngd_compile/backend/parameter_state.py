"""The local Fishers of parameters that stay `w`: found by the parameter itself, in every frame.

A compiled frame asks here each time it runs. So one graph serves many layers, and a parameter has
one state over frames, graph breaks, recompilations and models that share it.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from sngd_compile.backend.natural_gradient import inputs_of, merged
from sngd_compile.config import Config
from sngd_compile.errors import SngdWarning
from sngd_compile.fisher.carry_over import carry_over_
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.roots.base import Root, copy_root_
from sngd_compile.fisher.schedule import GATE_ENTRIES
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.fisher.weight_map import mapped
from sngd_compile.training.coordinates import Coordinates, Held, Parameters, move_
from sngd_compile.training.optimizer_hooks import register_owner

# On the host whatever the default device: the op reads it in each step, and waits for nothing.
SHUT = torch.zeros(GATE_ENTRIES, dtype=torch.int64, device="cpu")
"""The gate of a forward pass that is no part of training."""

UNFIT = "its uses in several compiled frames need different local Fishers"


class ParameterState:
    """The local Fisher of one parameter (and of a bias); nothing here keeps the parameter alive.

    Args:
        weight: The parameter, which stays `w`.
        bias: The bias that joins, or None.
        fisher: The Fisher layer.
        rule: Name of the rule, for the plan.
        config: As it was asked for; None where the state was loaded and no compilation has asked.
        note: For the plan.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        fisher: FisherLayer,
        rule: str,
        config: Config | None,
        note: str = "",
    ) -> None:
        # The weight is the weak key of this in `STATES`: a value that held it would keep it alive.
        self._weight = weakref.ref(weight)
        self._bias = None if bias is None else weakref.ref(bias)
        self.fisher, self.rule = fisher, rule
        self.config, self.note = config, note
        self.modules: list[weakref.ref[nn.Module]] = []

    @property
    def spec(self) -> FisherSpec:
        """What frames know of the Fisher layer."""
        return self.fisher.spec

    @property
    def weight(self) -> Tensor | None:
        """The parameter; None once it is gone."""
        return self._weight()

    @property
    def bias(self) -> Tensor | None:
        """The bias that joins."""
        return None if self._bias is None else self._bias()

    @property
    def training(self) -> bool:
        """Whether a module that holds the parameter trains; of unknown modules all do."""
        # Asked at run time: Dynamo compiles nothing new for a mode that no layer reads.
        found = [module for module in (ref() for ref in self.modules) if module is not None]
        return not found or any(module.training for module in found)

    def inputs(self) -> list[Tensor]:
        """List what a frame reads, `SHUT` being the gate of a module in eval mode."""
        fisher = self.fisher
        return inputs_of(fisher, fisher.schedule.gate if self.training else SHUT)

    def local_sites(self) -> list[NaturalSite]:
        """Return the site, while the parameter lives."""
        weight = self.weight
        return [] if weight is None else [NaturalSite(weight, self.bias, self.fisher)]


class NaturalSite:
    """A live parameter whose gradients come out natural; see `refresh.Site`."""

    is_bias_joined = False  # the parameters are w and b themselves
    steps_primes = False

    def __init__(self, weight: Tensor, bias: Tensor | None, fisher: FisherLayer) -> None:
        """Hold the parameters for as long as the site is used."""
        self.weight, self.bias, self.fisher = weight, bias, fisher

    def holds(self, weight: Tensor) -> bool:
        """Say whether its weight is this one; it holds all that it needs itself."""
        return self.weight is weight

    @torch.no_grad()
    def prime_gradients(self) -> list[Tensor]:
        """Return `n R^-1` of the natural gradient `n = g' R` that the parameters hold."""
        return self._in_primes(self.weight.grad, None if self.bias is None else self.bias.grad)

    @torch.no_grad()
    def prime_parameters(self) -> list[Tensor]:
        """Return `w R^-1` of the parameters."""
        return self._in_primes(self.weight, self.bias)

    @torch.no_grad()
    def prime_momenta(self, momenta: Mapping[int, Tensor]) -> list[Tensor]:
        """Return `v R^-1` of the momenta of the parameters."""
        return self._in_primes(*(momenta.get(id(p)) for p in (self.weight, self.bias)))

    def _in_primes(self, of_weight: Tensor | None, of_bias: Tensor | None) -> list[Tensor]:
        """Return what moves as `w` does, in the coordinates of `w'`; none without a weight's."""
        spec = self.fisher.spec
        if of_weight is None:
            return []
        if not spec.has_bias or self.bias is None:
            of_bias = None
        elif of_bias is None:  # the map mixes both, so half a pair has zeros
            of_bias = torch.zeros_like(self.bias)
        pair = mapped("unfold", self.fisher.root_buffers, spec, of_weight, of_bias)
        return [part for part in pair if part is not None]

    def gradients(self) -> list[Tensor]:
        """Return the natural gradients."""
        of_bias = self.bias if self.fisher.spec.has_bias else None
        held = (self.weight, of_bias)
        return [p.grad for p in held if p is not None and p.grad is not None]

    def coordinates(self, optimizers: Iterable[Any]) -> Coordinates:
        """Return the gradient that waits: it alone moves."""
        of_bias = None if self.bias is None else self.bias.grad
        return Coordinates(Parameters.none(), Held.of(self.weight.grad, of_bias), [])

    def guard(self, held: Coordinates) -> None:
        """Return nothing: no root changes `w`."""

    @torch.no_grad()
    def change_root_(self, root: Root, held: Coordinates) -> None:
        """Take another root. `w` and its momentum stay; a gradient that waits becomes natural anew.

        `g R_old^T R_old` becomes `g R_new^T R_new`, so that micro-batches before and after a
        refresh add up to a natural gradient. The velocity is one of `w`: it needs no map.
        """
        dtype = next(root.buffers()).dtype
        old = self.fisher.new_root(dtype)
        copy_root_(old, self.fisher.root_buffers)

        def gradient(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            plain = old.from_prime(*old.unfold(weight, bias))
            return root.fold(*root.to_prime(*plain))

        move_(self, gradient, dtype, held.gradient)
        copy_root_(self.fisher.root_buffers, root)
        self.fisher.note_change_()

    def part_bias_(self, optimizers: Iterable[Optimizer]) -> None:
        """Do nothing: weight and bias have coordinates of their own."""


STATES: Any = WeakTensorKeyDictionary()
"""Parameters to their `ParameterState`."""

REASONS: Any = WeakTensorKeyDictionary()
"""Parameters that a compiled frame left alone, to the reason."""


_last: list[weakref.ref[FisherLayer]] = []
"""The layer that was used last, if any."""


def become_last(state: ParameterState) -> None:
    """Note that the weight is the last one of the frame that runs, the latest of all frames."""
    # One graph may serve all blocks of a network: which of them is the last, only running says.
    for known in (reference() for reference in _last):
        if known is not None:
            known.is_last = False
    _last[:] = [weakref.ref(state.fisher)]
    state.fisher.is_last = True


def state_of(parameter: Tensor) -> ParameterState | None:
    """Return the state of a parameter."""
    state: ParameterState | None = STATES.get(parameter)
    return state


def adopt(state: ParameterState) -> None:
    """Make a state that of its parameter, and known to the optimizer hooks."""
    weight = state.weight
    assert weight is not None
    STATES[weight] = state
    REASONS.pop(weight, None)
    register_owner(state)


def get_or_create(
    weight: Tensor, bias: Tensor | None, spec: FisherSpec, config: Config, described: Sequence[str]
) -> ParameterState | None:
    """Return the state with which a frame can use a parameter; the first frame makes it.

    Where another frame uses the parameter in another way, the state starts anew in the form that
    serves both; None where there is none.

    Args:
        weight: The parameter.
        bias: The bias that joins in this frame, or None.
        spec: The local Fisher that this frame would like.
        config: Options of the compilation.
        described: Name of the parameter, rule and note.
    """
    known = state_of(weight)
    # For good: to the next frame alone it would be fit again, and its gradient would become the sum
    # of natural and plain parts, which is neither.
    if known is None and REASONS.get(weight) == UNFIT:
        return None
    name, rule, note = described
    if known is not None:
        _configure_(known, config)
        common = merged(known.spec, spec, bias is known.bias)
        if common == known.spec:
            return known
        if common is None:
            del STATES[weight]
            REASONS[weight] = UNFIT
            return None
        spec = common
        rule = rule if spec.layout != known.spec.layout else known.rule
    kept_bias = bias if spec.has_bias else None
    fisher = FisherLayer(name, spec, config, weight.device)
    state = ParameterState(weight, kept_bias, fisher, rule, config, note)
    if known is not None:
        state.modules, fisher.name = known.modules, known.fisher.name
        carry_over_(known.fisher, fisher)
    adopt(state)
    return state


def _configure_(state: ParameterState, config: Config) -> None:
    """Take the options for a loaded state; keep the first ones otherwise, and say so."""
    fisher = state.fisher
    if state.config is None:
        state.config = config
        # The loaded buffers have the shapes of their own root.
        fisher.config = fisher.schedule.config = config.replace(root=state.spec.root)
        past = fisher.schedule
        counts = past.steps, past.observed_steps, past.root_step
        fisher.schedule.configure_(fisher.config, fisher.size, *counts)
    elif state.config != config and "options" not in fisher.warned:
        fisher.warned.add("options")
        warnings.warn(
            f"{fisher.name}: compiled a second time with other options; the first ones "
            "stay in force.",
            SngdWarning,
            stacklevel=2,
        )


def modules_alive() -> list[nn.Module]:
    """List every module there is; a parameter does not know who holds it, nor does Dynamo tell."""
    # By type: `isinstance` would ask each object for `__class__`, which proxies compute or refuse.
    return [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module)]


def find_modules(states: Sequence[ParameterState]) -> None:
    """Remember which modules hold the parameters of these states."""
    wanted = {id(state.weight): state for state in states}
    for module in modules_alive():
        # The dictionary itself: some of these modules are not initialised yet, or damaged.
        for parameter in module.__dict__.get("_parameters", {}).values():
            if parameter is not None and id(parameter) in wanted:
                wanted[id(parameter)].modules.append(weakref.ref(module))
