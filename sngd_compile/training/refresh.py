"""Renewing roots: the function stays, and all that lives in the coordinates of `w'` moves along."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sngd_compile.fisher.carry_over import in_form
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.next_roots import next_roots, warn_once
from sngd_compile.fisher.roots.base import Change, Root, copy_root_
from sngd_compile.fisher.weight_map import as_matrices
from sngd_compile.training.averaged_copies import followers_of
from sngd_compile.training.change_guard import ChangeGuard, FunctionChangedError
from sngd_compile.training.divided_states import LINEAR_STATES, states_of, whole_states
from sngd_compile.training.intact import prime_of
from sngd_compile.training.remainders import completed, fit_remainders_, round_
from sngd_compile.training.sharding import put_, whole
from sngd_compile.training.transaction import all_or_nothing
from sngd_compile.training.warnings import warn_of_outliers, warn_of_refused, warn_of_rejected
from sngd_kernels.precision import exact_products


class Site(Protocol):
    """A weight that is trained in natural coordinates: where it and its Fisher layer are."""

    @property
    def weight(self) -> Tensor:
        """The parameter that the optimizer steps."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """The bias that joins, or None."""
        ...

    @property
    def fisher(self) -> FisherLayer:
        """The local Fisher layer."""
        ...

    @property
    def is_bias_joined(self) -> bool:
        """Whether a step of the parameter of the weight moves the bias too, or the other way."""
        ...

    def holds(self, weight: Tensor) -> bool:
        """Say whether the site is as it was, and its weight this one."""
        ...

    def prime_gradients(self) -> list[Tensor]:
        """Return the present `g' = g R^T`, of the weight and of a bias in its local Fisher."""
        ...

    def change_root_(self, root: Root, optimizers: Iterable[Optimizer]) -> None:
        """Give the layer another root; the function stays."""
        ...

    def part_bias_(self, optimizers: Iterable[Optimizer]) -> None:
        """Give the bias coordinates of its own; the function stays."""
        ...


@dataclass(frozen=True)
class LocalSite:
    """One reconstructed weight of a live module: where `w'`, `b'` and the Fisher layer are."""

    module: nn.Module
    weight_name: str
    bias_name: str | None
    fisher: FisherLayer
    fisher_name: str = field(init=False)

    def __post_init__(self) -> None:
        """Put the name of the Fisher layer together once: every step asks for it."""
        object.__setattr__(self, "fisher_name", f"{self.weight_name}_fisher")

    @property
    def weight(self) -> nn.Parameter:
        """W', shaped like the original weight."""
        return prime_of(self.module, self.weight_name, self.weight_name)

    @property
    def bias(self) -> nn.Parameter | None:
        """b', or None where the local Fisher has no bias row."""
        name = self.bias_name
        return None if name is None else prime_of(self.module, self.weight_name, name)

    @property
    def is_bias_joined(self) -> bool:
        """Whether weight and bias share coordinates."""
        return self.bias_name is not None and self.fisher.spec.has_bias

    def holds(self, weight: Tensor) -> bool:
        """Say whether the module is still reconstructed, with this w' and this Fisher layer.

        A bias that joins must not have been frozen since, nor thawed.
        """
        # Asked at every step of every weight: so it looks no further, and raises nothing.
        own = self.module.__dict__
        parameters, children = own.get("_parameters") or {}, own.get("_modules") or {}
        bias = weight if self.bias_name is None else parameters.get(self.bias_name)
        return (
            parameters.get(self.weight_name) is weight
            and children.get(self.fisher_name) is self.fisher
            and bias is not None
            and (bias.requires_grad is weight.requires_grad or not self.fisher.spec.has_bias)
            and hasattr(self.module, "local_sites")
        )

    def prime_gradients(self) -> list[Tensor]:
        """Return what the last backward pass left."""
        held = (self.weight, self.bias if self.is_bias_joined else None)
        return [p.grad for p in held if p is not None and p.grad is not None]

    def change_root_(self, root: Root, optimizers: Iterable[Optimizer]) -> None:
        """Give the layer another root and move `w'` along, if that keeps the function."""
        change_root_(self, root, optimizers, ChangeGuard(self.fisher, self.weight, self.bias))

    def part_bias_(self, optimizers: Iterable[Optimizer]) -> None:
        """Give the bias coordinates of its own, see `change_form_`."""
        change_form_(self, False, optimizers)


def refresh_sites(sites: Sequence[Site], optimizers: Sequence[Optimizer]) -> None:
    """Absorb what was observed and renew the roots; one that fails leaves the old one standing.

    The steps that were observed are closed: the sums are those of all processes, so each of them
    finds the same roots.

    Args:
        sites: The reconstructed weights.
        optimizers: Those whose states hold momenta of their parameters.
    """
    if sites:
        with exact_products(sites[0].weight.device):
            _refresh(sites, optimizers)


def _refresh(sites: Sequence[Site], optimizers: Sequence[Optimizer]) -> None:
    due = []
    for site in sites:
        with all_or_nothing(_statistics(site.fisher)):
            if site.fisher.absorb_():
                due.append(site)
    warn_of_rejected([site.fisher for site in sites])
    warn_of_outliers([site.fisher for site in due])
    refused: dict[FisherLayer, float] = {}
    # All decompositions before any change: one that fails leaves every network as it was.
    for site, found in zip(due, next_roots([site.fisher for site in due]), strict=True):
        fisher = site.fisher
        if found is not None:
            root, dampings = found
            try:
                with all_or_nothing(_dampings(fisher)):
                    fisher.take_dampings_(dampings)
                    group = fisher.ties.process_group
                    with whole_states(site.weight, site.bias, group, optimizers) as holders:
                        site.change_root_(root, holders)
                fisher.schedule.note_root()
            except FunctionChangedError as error:
                refused[fisher] = error.change
        elif fisher.damped():
            warn_once(
                fisher,
                "singular",
                "its damped factor is not positive definite, so its root stays as it was; raise "
                f"damping_rel_trace (now {fisher.config.damping_rel_trace}) or damping_abs",
            )
    warn_of_refused(refused)


def _statistics(fisher: FisherLayer) -> list[Tensor]:
    """List what adding up and absorbing the sums write to."""
    others = {id(buffer) for buffer in (*fisher.root_buffers.buffers(), *fisher.remainders)}
    return [buffer for buffer in fisher.buffers() if id(buffer) not in others]


def _dampings(fisher: FisherLayer) -> list[Tensor]:
    """List what remembers the damping inside a root."""
    sides = (fisher, fisher.output_side)
    return [side.absolute_damping for side in sides if side is not None]


@torch.no_grad()
def change_root_(
    site: LocalSite,
    root: Root,
    optimizers: Iterable[Optimizer],
    guard: ChangeGuard | None = None,
) -> None:
    """Give the layer another root and keep the function: `w' <- (w' R_old) R_new^-1`.

    Momentum moves by the same map, an accumulated gradient by `g' R_old^-T R_new^T`.

    Args:
        site: The reconstructed weight.
        root: The new root; its dtype is that of the arithmetic.
        optimizers: Those whose states hold momenta of its parameters.
        guard: Raises where the function was not kept, and all is as it was; None where there is no
            going back.

    Copies that follow the layer get the same root.

    Source: docs/method.md, refresh. Law 2 and the theorem tests test it.
    """
    fit_remainders_(site.fisher, site.weight, site.bias)
    with all_or_nothing(_held(site, optimizers)):
        _change_root_(site, root, optimizers)
        if guard is not None:
            guard.check()
    for follower in followers_of(site.fisher):
        take_over_(follower, site.fisher)


@torch.no_grad()
def change_form_(site: LocalSite, joined: bool, optimizers: Iterable[Optimizer]) -> None:
    """Let a bias join its weight, or part them: then no step of one moves the other.

    Where they are apart, the local Fisher of the weight is that of its inputs without the 1 of the
    bias, as if the bias had been left out by an override, and the bias takes plain steps. What was
    observed stays, and the function does.

    Source: docs/method.md, local Fishers. Tested by tests/training/test_bias_apart.py.
    """
    form = in_form(site.fisher, joined)
    root = form.new_root(torch.float64)
    copy_root_(root, form.root_buffers)
    fit_remainders_(site.fisher, site.weight, site.bias)
    with all_or_nothing(_held(site, optimizers)):
        _move_along_(site, root, optimizers)
        site.fisher.become_(form)
    site.fisher.ties.expect_change()
    for follower in followers_of(site.fisher):
        take_over_(follower, site.fisher)


def _change_root_(site: LocalSite, root: Root, optimizers: Iterable[Optimizer]) -> None:
    """Do what `change_root_` says, but for copies."""
    _move_along_(site, root, optimizers)
    # In place: compiled graphs and CUDA graphs hold these buffers.
    copy_root_(site.fisher.root_buffers, root)
    site.fisher.ties.expect_change()


def _move_along_(site: LocalSite, root: Root, optimizers: Iterable[Optimizer]) -> None:
    """Move all that lives in the coordinates of the present root to those of another."""
    dtype = next(root.buffers()).dtype
    layout = site.fisher.layout
    # What moves is read through the old root, so that is written over last.
    present = present_root(site.fisher, dtype)
    step, gradient = present.moves_to(root, layout.outputs, layout.width)
    move_parameters_(site, step, dtype)
    # A gradient that waits, as of micro-batches, is `g R^T` of the old root; the next backward
    # pass adds `g R^T` of the new one, and the sum must mean something.
    bias_gradient = None if site.bias is None else site.bias.grad
    move_(site, gradient, dtype, site.weight.grad, bias_gradient)
    # A velocity is a sum of past steps of w', and an average or a slow copy one of past w': so
    # they move as w' does. Squares of gradients, as Adam keeps them, have no such map.
    for pair in _linear_states(site, list(optimizers)):
        move_(site, step, dtype, *pair)


def _held(site: LocalSite, optimizers: Iterable[Optimizer]) -> list[Tensor | None]:
    """List all that lives in the coordinates of a root, and the root."""
    parameters = (site.weight, site.bias)
    gradients = [None if p is None else p.grad for p in parameters]
    states = [state for pair in _linear_states(site, list(optimizers)) for state in pair]
    kept = site.fisher.remainders
    return [*parameters, *kept, *gradients, *states, *site.fisher.root_buffers.buffers()]


def take_over_(site: LocalSite, leader: FisherLayer) -> None:
    """Give a copy's layer the root of another, wherever that lies; the function stays."""
    if site.fisher.spec.has_bias != leader.spec.has_bias:
        change_form_(site, leader.spec.has_bias, ())
    # A copy of its own: a copied network may lie on another device or have another dtype.
    own = site.fisher.new_root(leader.root_buffers.dtype)
    copy_root_(own, leader.root_buffers)
    change_root_(site, own, ())


def present_root(fisher: FisherLayer, dtype: torch.dtype) -> Root:
    """Return the root in this dtype, a copy only where it has another."""
    present = fisher.root_buffers
    if next(present.buffers()).dtype == dtype:
        return present
    copied = fisher.new_root(dtype)
    copy_root_(copied, present)
    return copied


def move_parameters_(site: LocalSite, change: Change, dtype: torch.dtype) -> None:
    """Apply `change` to w' and b', and to what their dtype does not hold of them."""
    parameters, remainders = (site.weight, site.bias), site.fisher.remainders
    pairs = [*zip(parameters, remainders, strict=True)]
    exact = [completed(*pair) for pair in pairs]
    move_(site, change, dtype, *exact)
    for pair, moved in zip(pairs, exact, strict=True):
        round_(*pair, moved)


def move_(
    site: Site,
    change: Change,
    dtype: torch.dtype,
    weight: Tensor | None,
    bias: Tensor | None,
) -> None:
    """Apply `change` in `dtype` to a pair shaped like w' and b'; a missing half counts as zero."""
    if weight is None and bias is None:
        return
    # The map mixes weight and bias, so half a pair is moved as a pair with zeros.
    full_weight = torch.zeros_like(site.weight) if weight is None else weight
    full_bias = torch.zeros_like(site.bias) if bias is None and site.bias is not None else bias
    layout = site.fisher.layout
    pair = as_matrices(layout, whole(full_weight), whole(full_bias), dtype)
    moved_weight, moved_bias = change(*pair)
    if weight is not None:
        put_(weight, layout.parameter(moved_weight, weight.shape))
    if bias is not None and moved_bias is not None:
        put_(bias, moved_bias.reshape(bias.shape))


def _linear_states(
    site: LocalSite, optimizers: Sequence[Optimizer]
) -> list[tuple[Tensor | None, Tensor | None]]:
    """Find the optimizer states of a weight and its bias that live in the coordinates of `w'`.

    Whatever an optimizer calls it: what has the shape of the parameter and a negative number is no
    square.
    """
    halves: list[dict[str, list[Tensor]]] = [defaultdict(list), defaultdict(list)]
    for parameter, found in zip((site.weight, site.bias), halves, strict=True):
        if parameter is None:
            continue
        for optimizer in optimizers:
            for name, state in states_of(optimizer, parameter).items():
                if isinstance(state, Tensor) and _is_like(state, parameter):
                    found[name].append(state)
    # In order, since each optimizer may have both, and each half an optimizer of its own.
    return [
        (weight, bias)
        for name in {**halves[0], **halves[1]}
        for weight, bias in zip_longest(halves[0][name], halves[1][name])
        if name in LINEAR_STATES or _is_signed(weight) or _is_signed(bias)
    ]


def _is_like(state: Tensor, parameter: Tensor) -> bool:
    return state.shape == parameter.shape and state.is_floating_point()


def _is_signed(state: Tensor | None) -> bool:
    return state is not None and bool(whole((state < 0).any()))
