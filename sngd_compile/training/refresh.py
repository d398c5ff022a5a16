"""Renewing roots: the function stays, and all that lives in the coordinates of `w'` moves along."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sngd_compile.fisher.carry_over import in_form
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.next_roots import NextRoot, warn_once
from sngd_compile.fisher.roots.base import Root, copy_root_
from sngd_compile.training.averaged_copies import followers_of
from sngd_compile.training.change_guard import ChangeGuard
from sngd_compile.training.coordinates import Coordinates, coordinates_of, move_
from sngd_compile.training.data_parallel import LARGEST_BUCKET
from sngd_compile.training.divided_states import whole_states
from sngd_compile.training.intact import prime_of
from sngd_compile.training.joint_roots import KeptStatistics, next_joint_roots
from sngd_compile.training.site import Site
from sngd_compile.training.transaction import (
    Kept,
    agreed,
    all_or_nothing,
    by_group,
    interrupts_wait,
)
from sngd_compile.training.warnings import warn_of_refused
from sngd_kernels.precision import exact_products


@dataclass(frozen=True)
class LocalSite:
    """One reconstructed weight of a live module: where `w'`, `b'` and the Fisher layer are."""

    module: nn.Module
    weight_name: str
    bias_name: str | None
    fisher: FisherLayer
    fisher_name: str = field(init=False)
    steps_primes: ClassVar[bool] = True

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
        return [grad for p in self.prime_parameters() if (grad := p.grad) is not None]

    def prime_parameters(self) -> list[Tensor]:
        """Return the parameters."""
        weight, bias = self.weight, self.bias if self.is_bias_joined else None
        return [weight] if bias is None else [weight, bias]

    def prime_momenta(self, momenta: Mapping[int, Tensor]) -> list[Tensor]:
        """Return those of the parameters that have a gradient."""
        moved = [p for p in self.prime_parameters() if p.grad is not None]
        found = [momenta[id(p)] for p in moved if id(p) in momenta]
        return found if len(found) == len(moved) else []

    gradients = prime_gradients

    def coordinates(self, optimizers: Iterable[Any]) -> Coordinates:
        """Return `w'`, its gradient, and the momenta that optimizers keep."""
        return coordinates_of(self.fisher, self.weight, self.bias, list(optimizers))

    def guard(self, held: Coordinates) -> ChangeGuard:
        """Return what compares the folded weights."""
        weight, bias = held.parameters.whole()
        assert weight is not None
        return ChangeGuard(self.fisher, weight, bias)

    def change_root_(self, root: Root, held: Coordinates) -> None:
        """Move `w'`, gradient and momenta to the coordinates of a root, and take it."""
        _move_along_(self, root, held)
        # In place: compiled graphs and CUDA graphs hold these buffers.
        copy_root_(self.fisher.root_buffers, root)
        self.fisher.note_change_()

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
    of_layer = {site.fisher: site for site in sites}
    refused: dict[FisherLayer, float] = {}
    for group, layers in by_group(of_layer):
        # Processes are not to differ in what they have absorbed, where one of them fails.
        kept = {} if group is None else {layer: KeptStatistics(layer) for layer in layers}
        try:
            with interrupts_wait(group):
                # All decompositions before any change: one that fails leaves all as it was.
                roots = next_joint_roots(layers, group)
                _warn_of_rootless([layer for layer, found in roots.items() if found is None])
                steps = [(of_layer[layer], found) for layer, found in roots.items() if found]
                for several in _together(steps, group):
                    refused |= _take_roots_(several, group, optimizers)
                    for site, _ in several:
                        kept.pop(site.fisher, None)
                        if site.fisher not in refused:
                            site.fisher.schedule.note_root()
                            _let_follow_(site.fisher)
                kept.clear()
        except BaseException:
            for statistics in kept.values():
                statistics.restore_()
            raise
    warn_of_refused(refused)


def _warn_of_rootless(layers: Sequence[FisherLayer]) -> None:
    for fisher in layers:
        if fisher.damped():
            warn_once(
                fisher,
                "singular",
                "its damped factor is not positive definite, so its root stays as it was; raise "
                f"damping_rel_trace (now {fisher.config.damping_rel_trace}) or damping_abs",
            )


Step = tuple[Site, NextRoot]
"""A weight and its next root."""


def _together(steps: Sequence[Step], group: Any) -> Iterator[list[Step]]:
    """Yield those about which processes agree by one message; alone, one by one.

    What they were is kept meanwhile, so there are no more than fit into a bucket.
    """
    several: list[Step] = []
    held = 0
    for step in steps:
        site, found = step
        numbers = 3 * site.weight.numel() + sum(buffer.numel() for buffer in found.root.buffers())
        if several and (group is None or held + numbers > LARGEST_BUCKET):
            yield several
            several, held = [], 0
        several.append(step)
        held += numbers
    if several:
        yield several


class _Attempt:
    """A new root that may be taken back.

    Args:
        site: Which gets it.
        held: What moves along.
    """

    def __init__(self, site: Site, held: Coordinates) -> None:
        self.site, self.guard = site, site.guard(held)
        written = (*held.tensors(), *site.fisher.root_buffers.buffers(), *_dampings(site.fisher))
        self.kept, self.gain = Kept(written), site.fisher.gain

    def restore_(self) -> None:
        """Have everything again as it was."""
        self.kept.restore_()
        self.site.fisher.gain = self.gain

    def take_(self, found: NextRoot, held: Coordinates) -> Tensor:
        """Take the root and move along; return by how much the weights have changed."""
        self.site.fisher.take_dampings_(found.dampings, found.gain)
        self.site.change_root_(found.root, held)
        weight, bias = held.parameters.whole()
        if self.guard is None or weight is None:
            return torch.zeros((), dtype=torch.float64, device=self.site.fisher.sum.device)
        return self.guard.change(weight, bias)

    def is_kept(self, change: float) -> bool:
        """Say whether that is no change of the function."""
        return self.guard is None or self.guard.allows(change)


@torch.no_grad()
def _take_roots_(
    steps: Sequence[Step], group: Any, optimizers: Sequence[Optimizer]
) -> dict[FisherLayer, float]:
    """Give weights their next roots; where a process fails, none of them in any.

    Returns:
        Those whose function would have changed, in any process, with the change: they stay.
    """
    attempts: list[_Attempt] = []
    layers = [site.fisher for site, _ in steps]
    pairs = [(site.weight, site.bias) for site, _ in steps]
    with whole_states(pairs, group, optimizers) as holders:

        def attempt() -> Tensor:
            failures: list[BaseException] = []
            changes = []
            for site, found in steps:
                # Parts are gathered here, so every process comes here for each, whatever failed.
                held = site.coordinates(holders)
                try:
                    if not failures:
                        attempts.append(_Attempt(site, held))
                        changes.append(attempts[-1].take_(found, held))
                except BaseException as error:
                    failures.append(error)
            if failures:
                raise failures[0]
            return torch.stack(changes)

        try:
            found = agreed(group, layers, len(steps), attempt, largest=True).tolist()
        except BaseException:
            for tried in attempts:
                tried.restore_()
            raise
        changes = dict(zip(attempts, found, strict=True))
        refused = {tried: size for tried, size in changes.items() if not tried.is_kept(size)}
        for tried in refused:
            tried.restore_()
    return {tried.site.fisher: size for tried, size in refused.items()}


def _let_follow_(fisher: FisherLayer) -> None:
    """Give copies that follow a layer its root."""
    for follower in followers_of(fisher):
        take_over_(follower, fisher)


def _dampings(fisher: FisherLayer) -> list[Tensor]:
    """List what remembers the damping inside a root."""
    sides = (fisher, fisher.output_side)
    return [side.absolute_damping for side in sides if side is not None]


@torch.no_grad()
def change_root_(site: LocalSite, root: Root, optimizers: Iterable[Optimizer]) -> None:
    """Give a layer another root and keep the function: `w' <- (w' R_old) R_new^-1`.

    Momentum moves by the same map, an accumulated gradient by `g' R_old^-T R_new^T`. Copies that
    follow the layer get the same root.

    Args:
        site: The reconstructed weight.
        root: The new root; its dtype is that of the arithmetic.
        optimizers: Those whose states hold momenta of its parameters.

    Source: docs/method.md, refresh. Law 2 and the theorem tests test it.
    """
    held = site.coordinates(optimizers)
    with all_or_nothing((*held.tensors(), *site.fisher.root_buffers.buffers())):
        site.change_root_(root, held)
    _let_follow_(site.fisher)


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
    held = site.coordinates(optimizers)
    with all_or_nothing((*held.tensors(), *site.fisher.root_buffers.buffers())):
        _move_along_(site, root, held)
        site.fisher.become_(form)
    site.fisher.note_change_()
    _let_follow_(site.fisher)


def _move_along_(site: LocalSite, root: Root, held: Coordinates) -> None:
    """Move all that lives in the coordinates of the present root to those of another."""
    dtype = next(root.buffers()).dtype
    layout = site.fisher.layout
    # What moves is read through the old root, so that is written over last.
    present = present_root(site.fisher, dtype)
    step, gradient = present.moves_to(root, layout.outputs, layout.width)
    held.parameters.move_(site, step, dtype)
    # A gradient that waits, as of micro-batches, is `g R^T` of the old root; the next backward
    # pass adds `g R^T` of the new one, and the sum must mean something.
    move_(site, gradient, dtype, held.gradient)
    # A velocity is a sum of past steps of w', and an average or a slow copy one of past w': so
    # they move as w' does. Squares of gradients, as Adam keeps them, have no such map.
    for state in held.states:
        move_(site, step, dtype, state)


def take_over_(site: LocalSite, leader: FisherLayer) -> None:
    """Give a copy's layer the root of another, wherever that lies; the function stays."""
    if site.fisher.spec.has_bias != leader.spec.has_bias:
        change_form_(site, leader.spec.has_bias, ())
    # A copy of its own: a copied network may lie on another device or have another dtype.
    own = site.fisher.new_root(leader.root_buffers.dtype)
    copy_root_(own, leader.root_buffers)
    change_root_(site, own, ())
    site.fisher.gain = leader.gain


def present_root(fisher: FisherLayer, dtype: torch.dtype) -> Root:
    """Return the root in this dtype, a copy only where it has another."""
    present = fisher.root_buffers
    if next(present.buffers()).dtype == dtype:
        return present
    copied = fisher.new_root(dtype)
    copy_root_(copied, present)
    return copied
