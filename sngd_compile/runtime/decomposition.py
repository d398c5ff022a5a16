"""The next roots of many Fisher layers, those of one shape in one call."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sngd_compile.errors import SngdWarning
from sngd_compile.runtime.fisher import FisherLayer
from sngd_compile.runtime.roots import FactorRoot, Root, decompose_all_

NextRoot = tuple[Root, tuple[float, ...]]
"""A root and the damping in it, of a kronecker kind in each of its two."""


@torch.no_grad()
def next_roots(layers: Sequence[FisherLayer]) -> list[NextRoot | None]:
    """Decompose the damped factors.

    Args:
        layers: Any kinds and shapes; those that agree in both are one batch.

    Returns:
        For each layer the root and its damping; None where the factor has no root: it is zero and
        undamped, or not positive definite. The present root then stays.
    """
    batches: dict[Any, list[tuple[FisherLayer, FactorRoot, Tensor]]] = defaultdict(list)
    roots: list[tuple[Root | None, Sequence[FactorRoot]]] = []
    dampings: list[tuple[float, ...]] = []
    for layer in layers:
        damped = layer.damped()
        # They are filled by the decomposition: an identity would be written for nothing.
        empty = layer.new_root(damped[0][0].dtype, torch.device("meta")) if damped else None
        sides = _sides(empty)
        roots.append((empty, sides))
        dampings.append(tuple(damping for _, damping in damped))
        for root, (matrix, _) in zip(sides, damped, strict=True):
            shape = (root.has_bias, matrix.shape, matrix.dtype, matrix.device)
            batches[layer.config.root, type(root), *shape].append((layer, root, matrix))
    definite: dict[int, bool] = {}
    for (method, *_), batch in batches.items():
        some, matrices = [root for _, root, _ in batch], [matrix for _, _, matrix in batch]
        good, instead = decompose_all_(some, matrices, method)
        definite |= {id(root): fine for root, fine in zip(some, good, strict=True)}
        for layer, root, _ in batch if instead else ():
            if definite[id(root)]:
                warn_once(layer, "instead", f"{instead}. eigh was taken instead")
    return [
        (root, found) if root is not None and all(definite[id(s)] for s in sides) else None
        for (root, sides), found in zip(roots, dampings, strict=True)
    ]


def _sides(root: Root | None) -> Sequence[FactorRoot]:
    """List the roots that are decomposed one by one."""
    if root is None:
        return []
    return [root] if isinstance(root, FactorRoot) else root.sides


def warn_once(layer: FisherLayer, kind: str, text: str) -> None:
    """Warn by name, the first time that this kind of thing happens to this layer."""
    if kind not in layer.warned:
        layer.warned.add(kind)
        warnings.warn(f"{layer.name}: {text}.", SngdWarning, stacklevel=3)
