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
from sngd_compile.fisher.roots.decompose import FactorRoot, Root, decompose_all_
from sngd_compile.fisher.roots.eigen import EigenRoot

NextRoot = tuple[Root, tuple[float, ...]]
"""A root and the damping in it, of a kronecker or eigen kind on each of its two sides."""


@torch.no_grad()
def next_roots(layers: Sequence[FisherLayer]) -> list[NextRoot | None]:
    """Decompose the damped factors.

    Args:
        layers: Any kinds and shapes; those that agree in both are one batch.

    Returns:
        For each layer the root and its damping; None where the factor has no root: it is zero and
        undamped, or not positive definite. The present root then stays.
    """
    batches: dict[Any, list[_Entry]] = defaultdict(list)
    roots: list[tuple[Root | None, Sequence[FactorRoot]]] = []
    dampings: list[tuple[float, ...]] = []
    for layer in layers:
        damped = layer.damped()
        # They are filled by the decomposition: an identity would be written for nothing.
        empty = layer.new_root(damped[0][0].dtype, torch.device("meta")) if damped else None
        sides = _sides(empty)
        roots.append((empty, sides))
        dampings.append(tuple(damping for _, damping in damped))
        present = _sides(layer.root_buffers) if damped else []
        for root, (matrix, _), old in zip(sides, damped, present, strict=True):
            shape = (root.has_bias, matrix.shape, matrix.dtype, matrix.device)
            entry = _Entry(layer, root, matrix, old)
            batches[layer.config.root, type(root), *shape].append(entry)
    definite: dict[int, bool] = {}
    for (method, *_), batch in batches.items():
        filled = [entry.root for entry in batch]
        present = [entry.present for entry in batch]
        found = decompose_all_(filled, [entry.damped for entry in batch], method, present)
        for entry, fine, warm in zip(batch, found.definite, found.is_warm, strict=True):
            definite[id(entry.root)] = fine
            _report(entry.layer, fine, warm, found.instead)
    return [
        _finished(root, damping)
        if root is not None and all(definite[id(side)] for side in sides)
        else None
        for (root, sides), damping in zip(roots, dampings, strict=True)
    ]


@dataclass(frozen=True)
class _Entry:
    """One matrix of a batch: whose it is, the root that it fills, and the one that stands now."""

    layer: FisherLayer
    root: FactorRoot
    damped: Tensor
    present: FactorRoot


def _report(layer: FisherLayer, definite: bool, is_warm: bool, instead: str) -> None:
    """Count how a root was found, and warn where its method did not serve."""
    if definite:
        layer.warm_roots += is_warm
        layer.fresh_roots += not is_warm
    if definite and instead:
        warn_once(layer, "instead", f"{instead}. eigh was taken instead")


def _sides(root: Root | None) -> Sequence[FactorRoot]:
    """List the roots that are decomposed one by one."""
    if root is None:
        return []
    return [root] if isinstance(root, FactorRoot) else root.sides


def _finished(root: Root, dampings: tuple[float, ...]) -> NextRoot | None:
    """Return a root whose sides are all there; None where the product of two has none."""
    if isinstance(root, EigenRoot) and not root.damped_(dampings[0]).is_definite:
        return None
    return root, dampings


def root_history(layer: FisherLayer) -> str:
    """Say how often the roots of a layer were steps from earlier ones; "" where none could be."""
    found = layer.warm_roots + layer.fresh_roots
    if layer.config.root != "warm" or layer.kind == "diagonal" or not found:
        return ""
    return f"{layer.warm_roots} of {found} roots were a step from the one before, the rest new"


def warn_once(layer: FisherLayer, kind: str, text: str) -> None:
    """Warn by name, the first time that this kind of thing happens to this layer."""
    if kind not in layer.warned:
        layer.warned.add(kind)
        warnings.warn(f"{layer.name}: {text}.", SngdWarning, stacklevel=3)
