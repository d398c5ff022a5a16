"""The next roots of many Fisher layers, those of one shape in one call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sngd_compile.runtime.fisher import FisherLayer
from sngd_compile.runtime.kronecker import FullRoot, KroneckerRoot
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
    batches: dict[Any, list[tuple[FactorRoot, Tensor]]] = defaultdict(list)
    sides: list[list[FactorRoot]] = []
    dampings: list[tuple[float, ...]] = []
    for layer in layers:
        damped = layer.damped()
        # They are filled by the decomposition: an identity would be written for nothing.
        empty = layer.new_root(damped[0][0].dtype, torch.device("meta")) if damped else None
        sides.append(_sides(empty))
        dampings.append(tuple(damping for _, damping in damped))
        for root, (matrix, _) in zip(sides[-1], damped, strict=True):
            key = (type(root), root.has_bias, matrix.shape, matrix.dtype, matrix.device)
            batches[key].append((root, matrix))
    definite: dict[int, bool] = {}
    for batch in batches.values():
        roots = [root for root, _ in batch]
        good = decompose_all_(roots, [matrix for _, matrix in batch])
        definite |= {id(root): fine for root, fine in zip(roots, good, strict=True)}
    return [
        (_joined(roots), found) if roots and all(definite[id(root)] for root in roots) else None
        for roots, found in zip(sides, dampings, strict=True)
    ]


def _sides(root: Root | None) -> list[FactorRoot]:
    """List the roots that are decomposed one by one."""
    if isinstance(root, KroneckerRoot):
        return [root.input_root, root.output_root]
    return [] if root is None else [root]


def _joined(roots: Sequence[FactorRoot]) -> Root:
    """Return the root of a layer whose sides these are."""
    return roots[0] if len(roots) == 1 else KroneckerRoot(*cast(Sequence[FullRoot], roots))
