"""A weight and its bias under a map of their root: as it is in eager, one opaque op in a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from sngd_compile.fisher.kinds.base import first_root
from sngd_compile.fisher.roots.base import Pair, Root
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.fisher.transforms import carrying_tangents, takes_opaque_ops
from sngd_compile.layout import Layout

ADJOINT = {
    "fold": "to_prime",
    "to_prime": "fold",
    "unfold": "from_prime",
    "from_prime": "unfold",
    "natural": "natural",
}
"""The maps, methods of a root, and the one that each one's gradients take; it is a constant."""


def mapped(name: str, root: Root, spec: FisherSpec, weight: Tensor, bias: Tensor | None) -> Pair:
    """Apply one of the maps to a weight and its bias, float32 or wider, autocast or not.

    A compiler that sees what the map does writes a kernel for every slice and sum of every
    weight, forward and backward, and compiles each. So a graph gets one opaque op a map, but for
    elementwise maps, which fuse with what is around them, and for maps of few outputs, which take
    less time than a call of the op.

    Args:
        name: Of the map.
        root: The root.
        spec: Of the local Fisher.
        weight: Any shape that the layout views.
        bias: One number per output, or None.

    Returns:
        Both, of the shapes and dtypes given.
    """
    # An op takes plain tensors and strings: so the root goes in as its buffers, and what kind of
    # root that was as the encoded record.
    if takes_opaque_ops() and spec.pays_as_op:
        given = None if spec.is_bias_apart else bias  # an op returns nothing that it was given
        opaque = torch.ops.sngd.map_weight(weight, given, _buffers_of(root), name, spec.encoded)
        return opaque[0], bias if given is None else opaque[1]
    return visibly_mapped(name, root, spec.layout, weight, bias)


def _buffers_of(root: nn.Module) -> list[Tensor]:
    """List the buffers of a root and of those in it, in a way that Dynamo traces fast.

    No generator: one that is left before its end is closed, which torch 2.14 does not trace.
    """
    buffers = [*cast(Any, root._buffers.values())]
    for child in root._modules.values():
        buffers += _buffers_of(cast(nn.Module, child))
    return buffers


def visibly_mapped(
    name: str, root: Root, layout: Layout, weight: Tensor, bias: Tensor | None
) -> Pair:
    """Apply one of the maps as `mapped` does, in a graph too by nodes that a compiler sees."""
    # Autocast would narrow the products again.
    with autocast_off(weight.device.type):
        return mapped_in_full(name, root, layout, weight, bias)


def is_autocast_on(device: str) -> bool:
    """Say whether autocast is on for a kind of device; torch asks of `meta` only by an error."""
    return device != "meta" and torch.is_autocast_enabled(device)


def autocast_off(device: str) -> AbstractContextManager[None]:
    """Return a context without autocast, which costs next to nothing where there is none."""
    if is_autocast_on(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def mapped_in_full(
    name: str, root: Root, layout: Layout, weight: Tensor, bias: Tensor | None
) -> Pair:
    """Apply a map in the dtype of the root or a wider one; the caller has autocast off."""
    dtype, wide, dims = weight.dtype, root.dtype, weight.dim()
    # Calls that change nothing are left out: the maps of small weights take no longer than those.
    is_vector = bias is None or (bias.dtype is dtype and bias.dim() == 1)
    if is_vector and layout.is_one_matrix and dims > 1 and dtype is wide:
        matrix = weight if dims == 2 else weight.reshape(layout.matrix)
        changed, vector = getattr(root, name)(matrix, bias)
        changed = changed if dims == 2 else changed.reshape(weight.shape)
        return changed, None if vector is None else vector.contiguous()
    # An ill-conditioned root multiplies the rounding of what it is applied to: bfloat16 weights
    # are widened first.
    if dtype is not wide:
        wide = torch.promote_types(dtype, wide)
    matrices, vectors = as_matrices(layout, weight, bias, wide)
    found, found_bias = getattr(root, name)(matrices, vectors)
    changed = _dense(_of_dtype(layout.parameter(found, weight.shape), dtype))
    if bias is None or found_bias is None:
        return changed, None
    return changed, _dense(_of_dtype(found_bias.reshape(bias.shape), bias.dtype))


def as_matrices(layout: Layout, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Pair:
    """Return a weight as `[*, O, K]` and its bias as `[*, O]`, `*` being the groups axis if any."""
    matrices = _of_dtype(layout.matrices(weight), dtype)
    return matrices, None if bias is None else _of_dtype(layout.vectors(bias), dtype)


def _of_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def _dense(parameter: Tensor) -> Tensor:
    """Make a vector contiguous, as a parameter is.

    F.batch_norm's backward on a CPU gives wrong gradients for a weight with a stride (seen on
    torch 2.13), silently.
    """
    return parameter.contiguous() if parameter.dim() == 1 else parameter


def map_weight(
    weight: Tensor, bias: Tensor | None, root: Sequence[Tensor], name: str, encoded: str
) -> list[Tensor]:
    """Apply one of the maps; see `mapped`. `root` are its buffers, `encoded` is the record."""
    spec = FisherSpec.decode(encoded)
    # The record says whether the local Fisher has a bias, the call whether one is mapped with it.
    held = filled_root(spec, bias is not None, root)
    pair = visibly_mapped(name, held, spec.layout, weight, bias)
    # The fake kernel promises contiguous results, and inductor plans memory by that promise.
    return [part.contiguous() for part in pair if part is not None]


def filled_root(spec: FisherSpec, has_bias: bool, buffers: Sequence[Tensor]) -> Root:
    """Return a root that holds these buffers, without a copy."""
    return cast(Root, _with_buffers(_empty_root(spec, has_bias), iter(buffers)))


@cache
def _empty_root(spec: FisherSpec, has_bias: bool) -> Root:
    """Make a root without numbers: most of what an op of a small weight took was making it."""
    if not spec.is_bias_apart:
        spec = replace(spec, has_bias=has_bias)
    return first_root(spec, torch.float32, torch.device("meta"))


def _with_buffers(root: nn.Module, buffers: Iterator[Tensor]) -> nn.Module:
    """Copy a root, in the order of `_buffers_of`, without what `nn.Module` does for the rest."""
    # `copy.copy` and `deepcopy` take longer than the map of a small weight does, and every fold
    # of every step in a compiled graph comes through here.
    copied = object.__new__(type(root))
    own = {name: next(buffers) for name in root._buffers}
    inner = {
        name: _with_buffers(cast(nn.Module, child), buffers)
        for name, child in root._modules.items()
    }
    copied.__dict__.update(root.__dict__, _buffers=own, _modules=inner)
    return copied


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, _, root, ctx.name, ctx.encoded = inputs
    ctx.save_for_backward(*root)


def _backward(ctx: Any, gradients: Sequence[Tensor]) -> tuple[Any, ...]:
    # The adjoint of `w' R` is `g R^T`: the same op under another name, so a second backward works.
    given = gradients[1] if len(gradients) > 1 else None
    root = list(ctx.saved_tensors)
    found = torch.ops.sngd.map_weight(gradients[0], given, root, ADJOINT[ctx.name], ctx.encoded)
    bias = None if given is None else found[1]
    return (found[0], bias, [None] * len(root), None, None)


def _fake(weight: Tensor, bias: Tensor | None, *rest: Any) -> list[Tensor]:
    pair = (weight,) if bias is None else (weight, bias)
    return [torch.empty_like(part, memory_format=torch.contiguous_format) for part in pair]


# Strides are left as they come: inductor would write a kernel that turns them.
torch.library.define(
    "sngd::map_weight",
    "(Tensor weight, Tensor? bias, Tensor[] root, str name, str encoded) -> Tensor[]",
    tags=(torch.Tag.flexible_layout,),
)
torch.library.impl("sngd::map_weight", "default", carrying_tangents(map_weight))
torch.library.register_fake("sngd::map_weight", _fake)
torch.library.register_autograd("sngd::map_weight", _backward, setup_context=_keep)
