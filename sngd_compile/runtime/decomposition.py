"""The next roots of many Fisher layers, those of one shape in one call."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sngd_compile.errors import SngdWarning
from sngd_compile.runtime.eigen import Eigenbasis, EigenRoot
from sngd_compile.runtime.fisher import FisherLayer
from sngd_compile.runtime.kronecker import FullRoot, KroneckerRoot
from sngd_compile.runtime.roots import FactorRoot, Root, decompose_all_

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
    batches: dict[Any, list[tuple[FisherLayer, FactorRoot, Tensor]]] = defaultdict(list)
    sides: list[list[FactorRoot]] = []
    dampings: list[tuple[float, ...]] = []
    for layer in layers:
        damped = layer.damped()
        # They are filled by the decomposition: an identity would be written for nothing.
        empty = layer.new_root(damped[0][0].dtype, torch.device("meta")) if damped else None
        sides.append(_sides(empty))
        dampings.append(tuple(damping for _, damping in damped))
        for root, (matrix, _) in zip(sides[-1], damped, strict=True):
            shape = (root.has_bias, matrix.shape, matrix.dtype, matrix.device)
            batches[layer.config.root, type(root), *shape].append((layer, root, matrix))
    definite: dict[int, bool] = {}
    for (method, *_), batch in batches.items():
        roots, matrices = [root for _, root, _ in batch], [matrix for _, _, matrix in batch]
        good, instead = decompose_all_(roots, matrices, method)
        definite |= {id(root): fine for root, fine in zip(roots, good, strict=True)}
        for layer, root, _ in batch if instead else ():
            if definite[id(root)]:
                warn_once(layer, "instead", f"{instead}. eigh was taken instead")
    return [
        _joined(roots, found) if roots and all(definite[id(root)] for root in roots) else None
        for roots, found in zip(sides, dampings, strict=True)
    ]


def _sides(root: Root | None) -> list[FactorRoot]:
    """List the roots that are decomposed one by one."""
    if isinstance(root, KroneckerRoot):
        return [root.input_root, root.output_root]
    if isinstance(root, EigenRoot):
        return [root.input_basis, root.output_basis]
    return [] if root is None else [root]


def _joined(roots: Sequence[FactorRoot], dampings: tuple[float, ...]) -> NextRoot | None:
    """Return the root of a layer whose sides these are; None where the product has none."""
    if isinstance(roots[0], Eigenbasis):
        product = EigenRoot(*cast(Sequence[Eigenbasis], roots)).damped_(dampings[0])
        return (product, dampings) if product.is_definite else None
    if len(roots) == 1:
        return roots[0], dampings
    return KroneckerRoot(*cast(Sequence[FullRoot], roots)), dampings


def warn_once(layer: FisherLayer, kind: str, text: str) -> None:
    """Warn by name, the first time that this kind of thing happens to this layer."""
    if kind not in layer.warned:
        layer.warned.add(kind)
        warnings.warn(f"{layer.name}: {text}.", SngdWarning, stacklevel=3)
