"""The folds of many weights as one node of autograd.

Eager execution pays for every call and for every node of autograd more than small weights are
worth. So weights are folded together, `w = w' R` for all of them, and their gradients are mapped
together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.roots.base import Pair
from sngd_compile.fisher.weight_map import autocast_off, mapped_in_full, visibly_mapped
from sngd_compile.torch_private import foreach_addcmul_, foreach_mul

Numbers = tuple[Tensor, Tensor, Tensor]
Form = tuple[torch.dtype, torch.device, bool]


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
        ctx.layers, ctx.halves = layers, flat
        return tuple(_mapped_together("fold", layers, flat))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """Return the gradients of `w'` and `b'`."""
        given = _completed(ctx.halves, gradients)
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
    halves: Sequence[Tensor | None], gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Fill the missing half of a pair with zeros: the map mixes weight and bias."""
    given = list(gradients)
    for index in range(0, len(given), 2):
        for place, other in ((index, index + 1), (index + 1, index)):
            half, known = halves[place], given[other]
            if given[place] is None and known is not None and half is not None:
                given[place] = known.new_zeros(half.shape, dtype=half.dtype)
    return given


def _mapped_together(
    name: str, layers: Sequence[FisherLayer], flat: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Apply a map to the pairs of layers, `[w, b, w, b, ...]`; to none where w is None."""
    found: list[Tensor | None] = [None] * len(flat)
    channels: dict[Form, list[tuple[int, Numbers]]] = defaultdict(list)
    device = next((half.device.type for half in flat if half is not None), "cpu")
    with autocast_off(device):  # asked once for all of them: small weights take no longer than that
        for index, layer in enumerate(layers):
            weight, bias = flat[2 * index], flat[2 * index + 1]
            if weight is None:
                continue
            root: Any = layer._modules["root_buffers"]  # `__getattr__` takes longer
            numbers = root.channel_numbers() if weight.dim() == 1 else None
            if numbers is not None and weight.dtype is numbers[0].dtype:
                channels[weight.dtype, weight.device, bias is None].append((index, numbers))
                continue
            layout = layer.spec.layout
            found[2 * index : 2 * index + 2] = mapped_in_full(name, root, layout, weight, bias)
        for several in channels.values():
            _map_channels(name, several, flat, found)
    return found


def _map_channels(
    name: str,
    several: Sequence[tuple[int, Numbers]],
    flat: Sequence[Tensor | None],
    found: list[Tensor | None],
) -> None:
    """Map weights of one number a channel, as those of normalisations, in a call for all of them.

    The root of a channel is `[[a, 0], [-s, g]]`: `w = a w'`, `b = g b' - s w'`, and for gradients
    `w = a w' - s b'`, `b = g b'`.
    """
    weights: Any = [flat[2 * index] for index, _ in several]
    inverses, gains, shifts = zip(*(numbers for _, numbers in several), strict=True)
    mapped = foreach_mul(weights, inverses)
    biases = [flat[2 * index + 1] for index, _ in several]
    mapped_biases: Sequence[Tensor | None] = biases
    if biases[0] is not None:
        mapped_biases = foreach_mul(biases, gains)
        if name == "fold":
            foreach_addcmul_(mapped_biases, weights, shifts, value=-1)
        else:
            foreach_addcmul_(mapped, biases, shifts, value=-1)
    for (index, _), weight, bias in zip(several, mapped, mapped_biases, strict=True):
        found[2 * index], found[2 * index + 1] = weight, bias
