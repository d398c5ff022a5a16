"""The trust region of every layer: no step moves its outputs too far, whatever else is trained.

On `w'` a norm is one of outputs: `|w'|` is the root of the mean square of what a layer gives, over
rows and outputs, and `lr |g'|` that of what a step of gradient descent changes in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import hypot, inf, isfinite, sqrt
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.trust import Trust
from sngd_compile.torch_private import foreach_mul_, foreach_norm
from sngd_compile.training.sharding import group_of, held_here, is_sharded, whole
from sngd_compile.training.site import Site

SMALLEST = 0.05
"""Outputs that a layer is taken to have at the least: one that begins at zero must get away."""

ADAPTS_EVERY = 5
"""Steps after which a layer's trust region adapts to how its gradients agree."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Reach:
    """How far a step would reach in one layer.

    Args:
        fisher: Of the layer.
        gradients: What the optimizer will step by, of the weight and of a bias that joins.
        length: `|g'|`.
        bound: The largest that it may be.
        trust: What the layer will remember, once the step is taken.
    """

    fisher: FisherLayer
    gradients: list[Tensor]
    length: float
    bound: float
    trust: Trust


@dataclass(frozen=True)
class _Measured:
    """What is measured of one layer in a step, all in natural coordinates.

    Args:
        site: The layer.
        gradients: `g'`.
        parameters: `w'`, where its norm is due, else none.
        momenta: Those of `w'` before the step, where they are looked at, else none.
    """

    site: Site
    gradients: list[Tensor]
    parameters: list[Tensor]
    momenta: list[Tensor]


@torch.no_grad()
def reaches(
    sites: Sequence[Site], optimizers: Callable[[], Sequence[Optimizer]], scale: float = 1.0
) -> list[Reach]:
    """Measure the steps of all layers that have a trust region and a gradient.

    Args:
        sites: Which one optimizer steps, in the same order in each process.
        optimizers: Returns it, and those that it holds.
        scale: What gradients are multiplied by until the optimizer divides them.
    """
    measured = _what_is_due(sites, optimizers)
    tensors: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    for one in measured:
        tensors += one.gradients
        if one.parameters:
            tensors += one.parameters
        if one.momenta:
            tensors += one.momenta
            pairs += zip(one.gradients, one.momenta, strict=True)
    lengths, products = iter(_lengths(tensors)), iter(_products(pairs))
    found = []
    for one in measured:
        fisher, trust = one.site.fisher, one.site.fisher.trust
        norm = hypot(*islice(lengths, len(one.gradients)))
        if one.parameters or one.momenta:
            trust = replace(trust)
        if one.parameters:
            trust.prime_norm = hypot(*islice(lengths, len(one.parameters)))
        if one.momenta:
            both = norm * hypot(*islice(lengths, len(one.momenta)))
            product = sum(islice(products, len(one.momenta)))
            rate = ADAPTS_EVERY * fisher.config.trust_rate
            trust.adapt(product / both if both else 0.0, rate)
        stepped = one.gradients if one.site.steps_primes else one.site.gradients()
        found.append(Reach(fisher, stepped, norm / scale, bound_of(fisher, trust), trust))
    return found


def _what_is_due(
    sites: Sequence[Site], optimizers: Callable[[], Sequence[Optimizer]]
) -> list[_Measured]:
    """Choose what to read: to read every weight in every step would take as long as its step."""
    momenta: dict[int, Tensor] | None = None
    measured = []
    for site in sites:
        config, schedule = site.fisher.config, site.fisher.schedule
        if config.trust_radius is None and config.trust_share is None:
            continue
        if kind_of(site.fisher.spec).measures_outputs or not (gradients := site.prime_gradients()):
            continue
        is_size_due = site.fisher.trust.prime_norm is None or schedule.observing
        adapts = config.trust_rate > 0 and schedule.steps % ADAPTS_EVERY == 0
        if adapts and momenta is None:
            momenta = _momenta_of(optimizers())
        parameters = site.prime_parameters() if is_size_due else []
        before = site.prime_momenta(momenta) if adapts and momenta else []
        measured.append(_Measured(site, gradients, parameters, before))
    return measured


def _momenta_of(optimizers: Sequence[Optimizer]) -> dict[int, Tensor]:
    """Return the velocity that each parameter has, up the gradient, by the parameter's id."""
    found = {}
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.SGD):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    kept = optimizer.state.get(parameter, {}).get("momentum_buffer")
                    if kept is not None and not kept.is_sparse:
                        found[id(parameter)] = -kept if group["maximize"] else kept
    return found


@torch.no_grad()
def shorten_(found: Sequence[Reach]) -> None:
    """Shorten each gradient that reaches out of its trust region, to its border.

    The step is taken then: a layer remembers nothing of one that is not.

    Source: docs/method.md, clipping is a trust region. Tested by
    tests/training/test_trust_region.py.
    """
    for reach in found:
        if isfinite(reach.length):
            reach.fisher.trust = reach.trust
    # What is not finite is the guard's, or that of an optimizer which skips its step itself.
    far = [reach for reach in found if reach.bound < reach.length < inf]
    gradients = [held_here(gradient) for reach in far for gradient in reach.gradients]
    if gradients:
        factors = [reach.bound / reach.length for reach in far for _ in reach.gradients]
        foreach_mul_(gradients, factors)


def bound_of(fisher: FisherLayer, trust: Trust) -> float:
    """Return the largest norm that the gradient of a layer's `w'` may have.

    Args:
        fisher: The layer.
        trust: How much of its region it may use, and `|w'|`.
    """
    config = fisher.config
    if kind_of(fisher.spec).measures_outputs:
        return inf
    # In the metric that sums over outputs, norms are larger by the root of their number.
    unit = sqrt(fisher.scale * fisher.layout.all_outputs)
    radius = inf if config.trust_radius is None else config.trust_radius * unit
    if config.trust_share is None:
        return trust.share * radius
    share = config.trust_share * max(trust.prime_norm or 0.0, SMALLEST * unit)
    # What a network gives has the unit of its targets, and may have far to go.
    return trust.share * (max(radius, share) if fisher.is_last else min(radius, share))


def _lengths(tensors: Sequence[Tensor]) -> list[float]:
    """Return the Euclidean norm of each, of sharded ones that of the whole."""

    def of_whole(tensors: list[Tensor]) -> Tensor:
        if not is_sharded(tensors[0]):
            return _norms(tensors)
        norms = _norms([held_here(tensor) for tensor in tensors])
        return _added_up(norms.double().square(), tensors[0]).sqrt()

    found = _in_places(tensors, tensors, of_whole)
    if all(map(isfinite, found)):
        return found
    # The squares of finite numbers may leave their dtype.
    return [
        length if isfinite(length) else float(torch.linalg.vector_norm(whole(t).double()))
        for length, t in zip(found, tensors, strict=True)
    ]


def _products(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """Return the inner product of each pair, of sharded ones that of the whole."""

    def of_whole(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        products = [_dot(held_here(one), held_here(other)) for one, other in pairs]
        return _added_up(torch.stack(products), pairs[0][0])

    return _in_places(pairs, [first for first, _ in pairs], of_whole)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Return an inner product: a product of all elements would be written to be added up."""
    wide = torch.promote_types(one.dtype, torch.float32)
    return torch.dot(one.reshape(-1).to(wide), other.reshape(-1).to(wide)).double()


def _in_places(
    items: Sequence[Item], tensors: Sequence[Tensor], measure: Callable[[list[Item]], Tensor]
) -> list[float]:
    """Measure items of one device, or of one group of processes, together: one transfer for all.

    Args:
        items: What is measured.
        tensors: Says of each item where it is.
        measure: Returns a number for each of some items.
    """
    places: dict[Any, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        places[group_of(tensor) if is_sharded(tensor) else tensor.device].append(index)
    if len(places) == 1:
        alone: list[float] = measure([*items]).tolist()
        return alone
    found = [0.0] * len(items)
    for indices in places.values():
        numbers = measure([items[index] for index in indices])
        for index, number in zip(indices, numbers.tolist(), strict=True):
            found[index] = number
    return found


def _norms(tensors: list[Tensor]) -> Tensor:
    is_wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.stack(foreach_norm(tensors, 2, torch.float64 if is_wide else torch.float32))


def _added_up(numbers: Tensor, like: Tensor) -> Tensor:
    """Add up what each process has of its parts; the numbers themselves where nothing is cut."""
    if not is_sharded(like):
        return numbers
    mesh = like.device_mesh  # type: ignore[attr-defined]
    numbers = numbers.to(mesh.device_type)
    torch.distributed.all_reduce(numbers, group=group_of(like))
    # Each part is there as often as the first of two dimensions of a mesh has copies.
    return numbers / (mesh.size(0) if mesh.ndim > 1 else 1)
