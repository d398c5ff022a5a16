"""The folds of many weights as one node of autograd.

Eager execution pays for every call and for every node of autograd more than small weights are
worth. So weights are folded together, `w = w' R` for all of them, and their gradients are mapped
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.roots.base import Pair
from sngd_compile.fisher.weight_map import autocast_off, mapped_in_full, visibly_mapped


def fold_together(
    layers: Sequence[FisherLayer], weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> list[Pair]:
    """Return `w' R` for each layer, all of them differentiable through one node.

    The node keeps no tensor for its backward pass, but looks at the roots again: gradients are
    those of the `w'` that is there when they arrive, as of a second backward pass after a refresh.
    It may be run any number of times. Weights that get no gradient keep theirs None.

    Args:
        layers: The Fisher layers.
        weights: W' of each, all of them to be trained or none.
        biases: b' of each, or None.
    """
    flat = [half for pair in zip(weights, biases, strict=True) for half in pair]
    found: Sequence[Any] = _Fold.apply(layers, *flat)  # type: ignore[no-untyped-call]
    return list(zip(found[::2], found[1::2], strict=True))


class _Fold(torch.autograd.Function):
    """`w' R` of every layer; backwards `g R^T`."""

    @staticmethod
    def forward(ctx: Any, layers: Sequence[FisherLayer], *flat: Tensor | None) -> tuple[Any, ...]:
        """Return a weight and a bias, or None, for each layer."""
        # A layer whose weight was not used must keep `grad is None`, not get zeros.
        ctx.set_materialize_grads(False)
        # No `save_for_backward`: several backward passes share the node, as those of micro-batches
        # and of checkpointed regions, and saved tensors are freed by the first.
        ctx.layers = layers
        ctx.shapes = [None if half is None else (half.shape, half.dtype) for half in flat]
        return tuple(_mapped_together("fold", layers, flat))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """Return the gradients of `w'` and `b'`."""
        given = _completed(ctx.shapes, gradients)
        if not torch.is_grad_enabled():
            return (None, *_mapped_together("to_prime", ctx.layers, given))
        # A second derivative goes through nodes that autograd sees.
        found: list[Tensor | None] = []
        for layer, weight, bias in zip(ctx.layers, given[::2], given[1::2], strict=True):
            if weight is None:
                found += (None, None)
            else:
                root, layout = layer.root_buffers, layer.layout
                found += visibly_mapped("to_prime", root, layout, weight, bias)
        return (None, *found)


def _completed(
    shapes: Sequence[tuple[torch.Size, torch.dtype] | None], gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Fill the missing half of a pair with zeros: the map mixes weight and bias."""
    given = list(gradients)
    for index in range(0, len(given), 2):
        halves = given[index], given[index + 1]
        known = next((half for half in halves if half is not None), None)
        for place in (index, index + 1):
            form = shapes[place]
            if known is not None and given[place] is None and form is not None:
                given[place] = known.new_zeros(form[0], dtype=form[1])
    return given


def _mapped_together(
    name: str, layers: Sequence[FisherLayer], flat: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Apply one of `MAPS` to the pairs of layers, `[w, b, w, b, ...]`; to none where w is None."""
    found: list[Tensor | None] = []
    device = next((half.device.type for half in flat if half is not None), "cpu")
    with autocast_off(device):  # asked once for all of them: small weights take no longer than that
        for layer, weight, bias in zip(layers, flat[::2], flat[1::2], strict=True):
            if weight is None:
                found += (None, None)
            else:
                found += mapped_in_full(name, layer.root_buffers, layer.spec.layout, weight, bias)
    return found
