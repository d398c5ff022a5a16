"""The functions that a compiled frame calls: `w` goes through, its gradient comes back natural."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.observe import add_to_sum
from sngd_compile.fisher.roots.base import Pair
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.fisher.weight_map import filled_root, mapped


def merged(one: FisherSpec, other: FisherSpec, same_bias: bool) -> FisherSpec | None:
    """Return the local Fisher that serves the uses of two frames, or None where they do not fit."""
    if other.layout.swapped_width(one.layout) is None:
        return None
    # Where one frame looks a table up and another multiplies by it, the full factor serves both.
    full = other if one.is_diagonal and not other.is_diagonal else one
    # A bias joins only if every use adds it, and a transposed use has other outputs to add it to.
    bias = one.has_bias and other.has_bias and same_bias and one.layout == other.layout
    return replace(full, has_bias=bias, dtype=torch.promote_types(one.dtype, other.dtype))


def inputs_of(fisher: FisherLayer, gate: Tensor) -> list[Tensor]:
    """List what a frame reads of a Fisher layer: statistics, then `gate`, then the root."""
    return [fisher.sum, fisher.tally, gate, *fisher.root_buffers.buffers()]


def natural(
    weight: Tensor, bias: Tensor | None, root: Sequence[Tensor], encoded: str
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias as they are; their gradients are multiplied by `(G + damping)^-1`.

    Args:
        weight: W, any shape that the layout of the local Fisher views.
        bias: b, one number per output, or None.
        root: The buffers of the root R.
        encoded: The record of the local Fisher, `FisherSpec.encoded`.

    Returns:
        W and b. Where they have the gradient `g`, the parameters get `g R^T R`.

    Source: arXiv 2412.07441: what plain descent on `w'` does to `w`. Tested by tests/backend.
    """
    outputs = _Natural.apply(encoded, weight, bias, *root)  # type: ignore[no-untyped-call]
    return outputs if bias is not None else (outputs[0], None)


class _Natural(torch.autograd.Function):
    """The identity with a natural gradient.

    A function, not an operator with a registered backward: AOTAutograd's cache does not know when
    the formula behind an operator changes, and leaves graphs with functions it cannot know alone.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        encoded: str, weight: Tensor, bias: Tensor | None, *root: Tensor
    ) -> tuple[Tensor, ...]:
        """Return views."""
        if bias is None:
            return (weight.view_as(weight),)
        return weight.view_as(weight), bias.view_as(bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the root."""
        ctx.encoded = inputs[0]
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return `g R^T R`; the root is a constant."""
        bias = gradients[1] if len(gradients) > 1 else None
        found = _times_inverse(gradients[0], bias, ctx.saved_tensors, ctx.encoded)
        return (None, *found, *(None for _ in ctx.saved_tensors))


def _times_inverse(
    weight: Tensor, bias: Tensor | None, buffers: Sequence[Tensor], encoded: str
) -> Pair:
    spec = FisherSpec.decode(encoded)
    return mapped("natural", filled_root(spec, bias is not None, buffers), spec, weight, bias)


def observe_frame(
    statistics: Sequence[Tensor],
    rule: str,
    inputs: Sequence[Tensor],
    geometry: Sequence[int],
    encoded: str,
    swapped: int,
) -> None:
    """Add the rows of one call to `sum` and `tally`; see `observe`.

    Args:
        statistics: Sum, tally and gate.
        rule: Name of the rule that makes rows of the inputs.
        inputs: The activations that the weight multiplies.
        geometry: Static integers of the layer, as the rule wrote them.
        encoded: The record of the local Fisher, `FisherSpec.encoded`.
        swapped: As in `observe`.
    """
    alias = [_unversioned(tensor) for tensor in statistics]
    add_to_sum(alias, inputs, None, (rule, list(geometry), encoded, swapped))


def _unversioned(statistic: Tensor) -> Tensor:
    """Return an alias whose changes go unnoticed by autograd, where nothing is traced.

    Run in eager, a checkpoint keeps its operands and refuses those that were changed since; the
    repeated forward adds nothing, so it does not matter to it.
    """
    return statistic.data if type(statistic) is Tensor else statistic
