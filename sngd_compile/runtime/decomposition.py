"""The next roots of many Fisher layers, those of one shape in one call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sngd_compile.runtime.fisher import FisherLayer
from sngd_compile.runtime.roots import Root, decompose_all_

NextRoot = tuple[Root, float]
"""A root and the damping in it."""


@torch.no_grad()
def next_roots(layers: Sequence[FisherLayer]) -> list[NextRoot | None]:
    """Decompose the damped factors.

    Args:
        layers: Any kinds and shapes; those that agree in both are one batch.

    Returns:
        For each layer the root and its damping; None where the factor has no root: it is zero and
        undamped, or not positive definite. The present root then stays.
    """
    found: list[NextRoot | None] = [None] * len(layers)
    batches: dict[Any, list[tuple[int, Root, Tensor, float]]] = defaultdict(list)
    for index, layer in enumerate(layers):
        damped = layer.damped()
        if damped is not None:
            matrix, damping = damped
            # It is filled by the decomposition: an identity would be written for nothing.
            root = layer.new_root(matrix.dtype, torch.device("meta"))
            shape = (root.has_bias, matrix.shape, matrix.dtype, matrix.device)
            batches[layer.config.root, layer.kind, *shape].append((index, root, matrix, damping))
    for (method, *_), batch in batches.items():
        roots, matrices = [root for _, root, _, _ in batch], [m for _, _, m, _ in batch]
        definite, instead = decompose_all_(roots, matrices, method)
        for (index, root, _, damping), good in zip(batch, definite, strict=True):
            found[index] = (root, damping) if good else None
            if instead and good:
                layers[index].warn_once("instead", f"{instead}. eigh was taken instead")
    return found
