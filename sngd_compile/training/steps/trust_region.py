"""The trust region of every layer: no step moves its outputs too far, whatever else is trained.

On `w'` a norm is one of outputs: `|w'|` is the root of the mean square of what a layer gives, over
rows and outputs, and `lr |g'|` that of what a step of gradient descent changes in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, inf, isfinite, sqrt
from typing import Any

import torch
from torch import Tensor

from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.torch_private import foreach_norm
from sngd_compile.training.sharding import group_of, held_here, is_sharded, whole
from sngd_compile.training.site import Site

SMALLEST = 0.05
"""Outputs that a layer is taken to have at the least: one that begins at zero must get away."""


@dataclass(frozen=True)
class Reach:
    """How far a step would reach in one layer.

    Args:
        gradients: What the optimizer will step by, of the weight and of a bias that joins.
        length: `|g'|`.
        bound: The largest that it may be.
    """

    gradients: list[Tensor]
    length: float
    bound: float


@torch.no_grad()
def reaches(sites: Sequence[Site], scale: float = 1.0) -> list[Reach]:
    """Measure the steps of all layers that have a trust region and a gradient.

    Args:
        sites: Which one optimizer steps, in the same order in each process.
        scale: What gradients are multiplied by until the optimizer divides them.
    """
    measured = []
    for site in sites:
        config = site.fisher.config
        if config.trust_radius is None and config.trust_share is None:
            continue
        if not kind_of(site.fisher.spec).measures_outputs and (given := site.prime_gradients()):
            measured.append((site, given, site.prime_parameters()))
    parts = [tensor for _, given, held in measured for tensor in (*given, *held)]
    lengths = iter(_lengths(parts))
    found = []
    for site, given, held in measured:
        length = hypot(*(next(lengths) for _ in given)) / scale
        size = hypot(*(next(lengths) for _ in held))
        found.append(Reach(site.gradients(), length, bound_of(site.fisher, size)))
    return found


@torch.no_grad()
def shorten_(found: Sequence[Reach]) -> None:
    """Shorten each gradient that reaches out of its trust region, to its border.

    Source: docs/method.md, clipping is a trust region. Tested by
    tests/training/test_trust_region.py.
    """
    for reach in found:
        # What is not finite is the guard's, or that of an optimizer which skips its step itself.
        if isfinite(reach.length) and reach.length > reach.bound:
            for gradient in reach.gradients:
                gradient.mul_(reach.bound / reach.length)


def bound_of(fisher: FisherLayer, size: float) -> float:
    """Return the largest norm that the gradient of a layer's `w'` may have.

    Args:
        fisher: The layer.
        size: `|w'|`.
    """
    config = fisher.config
    if kind_of(fisher.spec).measures_outputs:
        return inf
    # In the metric that sums over outputs, norms are larger by the root of their number.
    unit = sqrt(fisher.scale * fisher.layout.all_outputs)
    radius = inf if config.trust_radius is None else config.trust_radius * unit
    if config.trust_share is None:
        return radius
    share = config.trust_share * max(size, SMALLEST * unit)
    # What a network gives has the unit of its targets, and may have far to go.
    return max(radius, share) if fisher.is_last else min(radius, share)


def _lengths(tensors: Sequence[Tensor]) -> list[float]:
    """Return the Euclidean norm of each, of sharded ones that of the whole."""
    places: dict[Any, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        places[group_of(tensor) if is_sharded(tensor) else tensor.device].append(index)
    found = [0.0] * len(tensors)
    for place, indices in places.items():
        of_place = [tensors[index] for index in indices]
        norms = _norms(of_place) if isinstance(place, torch.device) else _joint(of_place, place)
        for index, length in zip(indices, norms.tolist(), strict=True):
            found[index] = length
    # The squares of finite numbers may leave their dtype.
    return [
        length if isfinite(length) else float(torch.linalg.vector_norm(whole(t).double()))
        for length, t in zip(found, tensors, strict=True)
    ]


def _norms(tensors: list[Tensor]) -> Tensor:
    is_wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.stack(foreach_norm(tensors, 2, torch.float64 if is_wide else torch.float32))


def _joint(tensors: list[Tensor], group: Any) -> Tensor:
    """Return the norms of tensors that a group of processes holds in parts: one message for all."""
    mesh = tensors[0].device_mesh  # type: ignore[attr-defined]
    squares = _norms([held_here(tensor) for tensor in tensors]).double().square()
    squares = squares.to(mesh.device_type)
    torch.distributed.all_reduce(squares, group=group)
    # Each part is there as often as the first of two dimensions of a mesh has copies.
    return (squares / (mesh.size(0) if mesh.ndim > 1 else 1)).sqrt()
