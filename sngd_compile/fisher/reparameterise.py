"""The functions that a reconstructed graph calls: `w = w' R`, on the weight or on the rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from sngd_compile.fisher.forward_pass import fold_in_pass, folded_ahead, leave_unfolded
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.roots.base import Pair
from sngd_compile.fisher.samples import is_strided
from sngd_compile.fisher.transforms import is_seen_through
from sngd_compile.fisher.weight_map import is_autocast_on, mapped, visibly_mapped


def fold(fisher: FisherLayer, weight_prime: Tensor, bias_prime: Tensor | None) -> Pair:
    """Return the ordinary weight and bias, `w = w' R`: the weight side.

    Computed in float32 or wider whatever the parameters are, autocast or not, then cast back.

    Args:
        fisher: The local Fisher layer; its root is a constant in the backward pass.
        weight_prime: W', any shape `[O, ...]`.
        bias_prime: b' `[O]`, or None.

    Returns:
        W and b, shapes and dtypes of W' and b'.

    Source: arXiv 2412.07441, `w = G^(-1/2) w'`. Law 1 and law 3 test it.
    """
    ahead = folded_ahead(fisher, weight_prime, bias_prime)
    if ahead is not None:
        return ahead
    if is_seen_through():
        return mapped("fold", fisher.root_buffers, fisher.spec, weight_prime, bias_prime)
    return fold_in_pass(fisher, weight_prime, bias_prime)


def fold_half(fisher: FisherLayer, weight_prime: Tensor, bias_prime: Tensor | None) -> Pair:
    """Return what `fold` does, to a caller who uses one half of it.

    A compiler that sees the nodes leaves out what only the other half needs; an opaque op would
    map the weight once for each half, and zeros for its gradient.
    """
    if not is_seen_through():
        return fold(fisher, weight_prime, bias_prime)
    layout = fisher.layout
    return visibly_mapped("fold", fisher.root_buffers, layout, weight_prime, bias_prime)


def local_linear(
    fisher: FisherLayer, input: Tensor, weight_prime: Tensor, bias_prime: Tensor | None
) -> Tensor:
    """Apply a reconstructed linear layer, `W' (R x~)` or `(W' R) x~`, whichever costs less.

    Both are the same function with the same gradients. The triangular solve runs over N rows
    forward, and again backward where the input needs a gradient, or over O outputs both ways.

    Args:
        fisher: The local Fisher layer, of one group.
        input: Activations `[..., K]`.
        weight_prime: W' `[O, K]`, or as the layer's layout has it.
        bias_prime: b' `[O]`, or None.

    Returns:
        `[..., O]`, as `F.linear` would.

    Source: docs/method.md, cost. Law 1 runs both sides.
    """
    if not _on_rows(fisher, input, weight_prime):
        weight, bias = fold(fisher, weight_prime, bias_prime)
        return F.linear(input, fisher.spec.layout.matrices(weight), bias)
    leave_unfolded(fisher)
    rows = input.reshape(-1, input.shape[-1])
    matrix = fisher.layout.matrices(weight_prime)
    output = fisher.root_buffers.linear(rows, matrix, bias_prime)
    if input.dim() == 2:
        return output  # no view: fully_shard warns of those
    return output.view(*input.shape[:-1], fisher.layout.outputs)


def local_embedding(
    fisher: FisherLayer, indices: Tensor, weight_prime: Tensor, padding_idx: int | None
) -> Tensor:
    """Look rows of `w' R` up, folding only those that are looked up.

    Args:
        fisher: A diagonal local Fisher over the V entries of the table; or, of a table that is also
            the weight of a linear layer, that of its E inputs.
        indices: Integers of any shape.
        weight_prime: W' `[V, E]`.
        padding_idx: Entry that gets no gradient, or None.

    Returns:
        `[*indices.shape, E]`, as `F.embedding` would.

    Source: docs/method.md, cost. Law 1 tests it.
    """
    # A table may have far more entries than a batch looks up: the whole fold would cost the most.
    if _reads_most(indices, weight_prime):
        return F.embedding(indices, fold(fisher, weight_prime, None)[0], padding_idx)
    leave_unfolded(fisher)
    looked_up = F.embedding(indices, weight_prime, padding_idx)
    wide = torch.promote_types(weight_prime.dtype, fisher.factor.dtype)
    if fisher.spec.is_diagonal and fisher.layout.is_transposed:
        gain = fisher.root_buffers.get_buffer("gain")[indices]
        return (looked_up.to(wide) * gain[..., None]).to(weight_prime.dtype)
    rows, _ = fisher.root_buffers.fold(looked_up.flatten(0, -2).to(wide), None)
    return rows.view(looked_up.shape).to(weight_prime.dtype)


def _reads_most(indices: Tensor, table: Tensor) -> bool:
    """Say whether so much is looked up that folding all entries costs less."""
    most: bool = indices.numel() >= table.shape[0]
    # A guard on a dynamic number of indices would compile every regime anew.
    most = statically_known_true(most) if torch.compiler.is_compiling() else most
    return most or not is_strided(indices)


def _on_rows(fisher: FisherLayer, input: Tensor, weight_prime: Tensor) -> bool:
    """Choose the activation side: full precision throughout, and fewer rows than outputs."""
    # F.linear says what is wrong with it, and a nested tensor may have no sizes to ask for.
    if not isinstance(input, Tensor) or input.is_nested or input.dim() == 0:
        return False
    outputs, width = fisher.spec.layout.matrix
    rows = input.numel() // width if width else 0
    fewer: bool = rows * (2 if input.requires_grad else 1) < 2 * outputs
    # A dynamic number of rows may grow: a guard on it would compile every regime anew.
    fewer = statically_known_true(fewer) if torch.compiler.is_compiling() else fewer
    if not fewer or input.shape[-1] != width:
        return False
    same = input.dtype == weight_prime.dtype == fisher.factor.dtype
    return same and not is_autocast_on(input.device.type) and is_strided(input)
