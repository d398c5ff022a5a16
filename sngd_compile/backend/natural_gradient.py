"""The functions that a compiled frame calls: `w` goes through, its gradient comes back natural."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sngd_compile.config import Config
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.observe import add_to_sum
from sngd_compile.fisher.roots.pairs import Pair
from sngd_compile.fisher.weight_map import RootForm, mapped
from sngd_compile.layout import Layout

Encoded = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool, str, str]


@dataclass(frozen=True)
class Form:
    """What a compiled frame must know of a local Fisher: all but its numbers.

    Args:
        layout: How the weight is laid out as matrices `[*, O, K]`.
        has_bias: Whether a bias joins.
        kind: "shared" or "diagonal".
        root: "cholesky" or "symmetric".
        dtype: Of the statistics and of the root.
    """

    layout: Layout
    has_bias: bool
    kind: str
    root: str
    dtype: torch.dtype

    def layer(self, name: str, config: Config, device: torch.device) -> FisherLayer:
        """Make a Fisher layer of this form, before its first observation."""
        config = config.replace(root=self.root)
        return FisherLayer(name, self.layout, self.has_bias, self.kind, config, self.dtype, device)

    def encode(self) -> Encoded:
        """Return plain values, which a graph can carry."""
        layout = self.layout
        return layout.view, layout.order, layout.matrix, self.has_bias, self.kind, self.root

    def merged(self, other: Form, same_bias: bool) -> Form | None:
        """Return the form that serves the uses of two frames, or None where they do not fit."""
        if other.layout.swapped_width(self.layout) is None:
            return None
        full = other if (self.kind, other.kind) == ("diagonal", "shared") else self
        bias = self.has_bias and other.has_bias and same_bias and self.layout == other.layout
        wide = torch.promote_types(self.dtype, other.dtype)
        return Form(full.layout, bias, full.kind, full.root, wide)


def inputs_of(fisher: FisherLayer, gate: Tensor) -> list[Tensor]:
    """List what a frame reads of a Fisher layer: statistics, then `gate`, then the root."""
    return [fisher.sum, fisher.tally, gate, *fisher.root_buffers.buffers()]


def natural(
    weight: Tensor, bias: Tensor | None, root: Sequence[Tensor], form: Encoded
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias as they are; their gradients are multiplied by `(G + damping)^-1`.

    Args:
        weight: W, any shape that the form's layout views.
        bias: b, one number per output, or None.
        root: The buffers of the root R.
        form: As `Form.encode` wrote it.

    Returns:
        W and b. Where they have the gradient `g`, the parameters get `g R^T R`.

    Source: arXiv 2412.07441: what plain descent on `w'` does to `w`. Tested by tests/backend.
    """
    outputs = _Natural.apply(form, weight, bias, *root)  # type: ignore[no-untyped-call]
    return outputs if bias is not None else (outputs[0], None)


class _Natural(torch.autograd.Function):
    """The identity with a natural gradient.

    A function, not an operator with a registered backward: AOTAutograd's cache does not know when
    the formula behind an operator changes, and leaves graphs with functions it cannot know alone.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        form: Encoded, weight: Tensor, bias: Tensor | None, *root: Tensor
    ) -> tuple[Tensor, ...]:
        """Return views."""
        if bias is None:
            return (weight.view_as(weight),)
        return weight.view_as(weight), bias.view_as(bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the root."""
        ctx.form = inputs[0]
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return `g R^T R`; the root is a constant."""
        bias = gradients[1] if len(gradients) > 1 else None
        found = _times_inverse(gradients[0], bias, ctx.saved_tensors, ctx.form)
        return (None, *found, *(None for _ in ctx.saved_tensors))


def _times_inverse(
    weight: Tensor, bias: Tensor | None, buffers: Sequence[Tensor], form: Encoded
) -> Pair:
    view, order, matrix, _, kind, root = form
    root_form = RootForm(kind, root, (), Layout(view, order, matrix))
    filled = root_form.filled(bias is not None, buffers)
    return mapped("natural", filled, root_form, weight, bias)


def observe_frame(
    statistics: Sequence[Tensor],
    rule: str,
    inputs: Sequence[Tensor],
    geometry: Sequence[int],
    form: Encoded,
    swapped: int,
) -> None:
    """Add the rows of one call to `sum` and `tally`; see `observe`.

    Args:
        statistics: Sum, tally and gate.
        rule: Name of the rule that makes rows of the inputs.
        inputs: The activations that meet the weight.
        geometry: Static integers of the layer, as the rule wrote them.
        form: As `Form.encode` wrote it.
        swapped: As in `observe`.
    """
    *_, has_bias, kind, _ = form
    alias = [_unversioned(tensor) for tensor in statistics]
    add_to_sum(alias, inputs, rule, geometry, (has_bias, kind == "diagonal", swapped, ()))


def _unversioned(statistic: Tensor) -> Tensor:
    """Return an alias whose changes go unnoticed by autograd, where nothing is traced.

    Run in eager, a checkpoint keeps its operands and refuses those that were changed since; the
    repeated forward adds nothing, so it does not matter to it.
    """
    return statistic.data if type(statistic) is Tensor else statistic
