"""The next roots of many Fisher layers, those of one shape in one call."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sngd_compile.errors import SngdWarning
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.roots.base import FactorRoot, Root, decompose_all_

MOST_NAMES = 6
"""Names in one warning; their number stands before them."""


@dataclass(frozen=True)
class NextRoot:
    """A root, and what belongs to it.

    Args:
        root: It.
        dampings: In it, of a kronecker kind on each of its two sides.
        gain: What the factor is multiplied by beside `FisherSpec.scale`, see `Config.unit_gain`.
    """

    root: Root
    dampings: tuple[float, ...]
    gain: float = 1.0


@dataclass(frozen=True)
class _Entry:
    """One matrix of a batch: whose it is, and the root that it fills."""

    layer: FisherLayer
    root: FactorRoot
    damped: Tensor


@torch.no_grad()
def next_roots(layers: Sequence[FisherLayer]) -> list[NextRoot | None]:
    """Decompose the damped factors.

    Args:
        layers: Any kinds and shapes; those that agree in both are one batch.

    Returns:
        For each layer the root and its damping; None where the factor has no root: it is zero and
        undamped, or not positive definite. The present root then stays.
    """
    # On a GPU a decomposition of one small matrix is many launches and little work: those of one
    # shape cost as much together as one alone.
    batches: dict[Any, list[_Entry]] = defaultdict(list)
    next_: list[NextRoot | None] = []
    for layer in layers:
        damped = layer.damped()
        if not damped:
            next_.append(None)
            continue
        # They are filled by the decomposition: an identity would be written for nothing.
        empty = layer.new_root(damped[0][0].dtype, torch.device("meta"))
        next_.append(NextRoot(empty, tuple(damping for _, damping in damped)))
        for root, (matrix, _) in zip(empty.sides, damped, strict=True):
            shape = (root.has_bias, matrix.shape, matrix.dtype, matrix.device)
            batches[type(root), *shape].append(_Entry(layer, root, matrix))
    rootless: set[int] = set()
    for batch in batches.values():
        definite, reason = decompose_all_([e.root for e in batch], [e.damped for e in batch])
        for entry, fine in zip(batch, definite, strict=True):
            if not fine:
                rootless.add(id(entry.root))
            elif reason:
                warn_once(
                    entry.layer,
                    "fallback",
                    f"{reason}. eigh was taken instead, which is exact and slower; if it comes "
                    "often, raise damping_rel_trace or choose another root",
                )
    # With two sides, a new root on one and an old one on the other would fit no factor.
    return [
        None
        if found is None or any(id(side) in rootless for side in found.root.sides)
        else _of_unit_gain(layer, found)
        for layer, found in zip(layers, next_, strict=True)
    ]


def _of_unit_gain(layer: FisherLayer, found: NextRoot) -> NextRoot:
    """Scale a root to `|R|^2 = D`, on average over groups, where that is asked for."""
    if not layer.config.unit_gain:
        return found
    # The metric is `gain (scale G + damping)` then, so that is what the damping is.
    gain = float(found.root.squared_norm().mean()) / layer.size
    found.root.scale_(gain**-0.5)
    first, *others = found.dampings
    return NextRoot(found.root, (gain * first, *others), gain)


def warn_once(layer: FisherLayer, kind: str, text: str) -> None:
    """Warn by name, the first time that this kind of thing happens to this layer."""
    warn_once_of([layer], kind, text)


def warn_once_of(layers: Sequence[FisherLayer], kind: str, text: str) -> None:
    """Warn in one text of all layers to which this kind of thing happens for the first time."""
    new = [layer for layer in layers if kind not in layer.warned]
    for layer in new:
        layer.warned.add(kind)
    if new:
        named = ", ".join(layer.name for layer in new[:MOST_NAMES])
        rest = f" and {len(new) - MOST_NAMES} more" if len(new) > MOST_NAMES else ""
        number = f"{len(new)} weights, " if len(new) > 1 else ""
        warnings.warn(f"{number}{named}{rest}: {text}.", SngdWarning, stacklevel=4)
