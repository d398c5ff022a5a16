"""Views of a folded weight: transposes, parts of the outputs, groups of a stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sngd_compile.torch_private import DisableTorchFunctionSubclass, tree_leaves

_GETTERS: list[Any] = [Tensor.T.__get__, Tensor.mT.__get__]  # type: ignore[attr-defined]

VIEWS: dict[Any, str] = {
    **dict.fromkeys((Tensor.t, torch.t, *_GETTERS), "transpose"),
    **dict.fromkeys((Tensor.transpose, torch.transpose, Tensor.swapaxes), "transpose"),
    **dict.fromkeys((Tensor.permute, torch.permute), "transpose"),
    **dict.fromkeys((Tensor.contiguous, Tensor.to, Tensor.type_as, Tensor.float), "same"),
    **dict.fromkeys((Tensor.half, Tensor.bfloat16, Tensor.double), "same"),
    **dict.fromkeys((Tensor.view, Tensor.reshape, Tensor.flatten, Tensor.unflatten), "reshape"),
    **dict.fromkeys((Tensor.squeeze, Tensor.unsqueeze, torch.squeeze, torch.unsqueeze), "reshape"),
    **dict.fromkeys((Tensor.chunk, torch.chunk, Tensor.split, torch.split), "parts"),
    **dict.fromkeys((Tensor.unbind, torch.unbind, Tensor.__iter__), "parts"),
    **dict.fromkeys((Tensor.__getitem__, Tensor.select), "item"),
}
"""Functions that give views of a weight, by what they do."""


def track_view(
    weight: Any,
    make: Callable[..., Tensor],
    func: Any,
    rest: Sequence[Any],
    kwargs: Mapping[str, Any],
    result: Any,
) -> Any:
    """Give a view of a folded weight its place in the weight.

    Args:
        weight: The folded weight, with `fisher`, `is_transposed` and `group`.
        make: Makes a folded weight of the Fisher layer, a tensor, `is_transposed` and `group`.
        func: A function of `VIEWS`.
        rest: Its arguments after the weight.
        kwargs: Its arguments by name.
        result: What it returned, plain tensors.

    Returns:
        The result as a folded weight; None where it is no part that a local Fisher has rows for.
    """
    kind, transposed = VIEWS[func], weight.is_transposed
    if kind == "transpose" and weight.dim() >= 2 and _swaps(func, rest, kwargs, weight.dim()):
        return make(weight.fisher, result, not transposed, weight.group)
    if kind == "same":
        return make(weight.fisher, result, transposed, weight.group)
    if kind == "reshape" and not transposed and weight.group is None:
        return make(weight.fisher, result)
    if kind == "parts" and weight.dim() >= 2:
        axis_last = 1 if func in (Tensor.unbind, torch.unbind) else 2
        axis = kwargs.get("dim", rest[-1] if len(rest) == axis_last else 0)
        return _parts(weight, make, result, axis % weight.dim())
    if kind == "item":
        return _item(weight, make, func, rest, result)
    return None


def _swaps(func: Any, rest: Sequence[Any], kwargs: Mapping[str, Any], dims: int) -> bool:
    """Say whether the last two axes, and no others, change places."""
    axes = [axis % dims for axis in tree_leaves((rest, dict(kwargs)))]
    if not axes:
        return True
    if func in (Tensor.permute, torch.permute):
        return axes == [*range(dims - 2), dims - 1, dims - 2]
    return sorted(axes) == [dims - 2, dims - 1]


def _parts(weight: Any, make: Callable[..., Tensor], parts: Any, axis: int) -> Any:
    """Track the groups of a stack, or parts of the outputs."""
    transposed, group = weight.is_transposed, weight.group
    of_outputs = weight.dim() - (1 if transposed else 2)
    taken_out = len(parts) > 0 and parts[0].dim() < weight.dim()
    if weight.dim() == 3 and axis == 0 and group is None and taken_out:
        numbers = range(len(parts)) if weight.fisher.groups else [None] * len(parts)
        pairs = zip(parts, numbers, strict=True)
        return tuple(make(weight.fisher, part, transposed, number) for part, number in pairs)
    if axis == of_outputs and not taken_out:
        return tuple(make(weight.fisher, part, transposed, group) for part in parts)
    return None


def _item(
    weight: Any, make: Callable[..., Tensor], func: Any, rest: Sequence[Any], result: Tensor
) -> Tensor | None:
    """Track one group of a stack, or a slice of the outputs of a matrix."""
    index = rest[0] if func is Tensor.__getitem__ else False
    if func is Tensor.select and len(rest) == 2 and rest[0] == 0:
        index = rest[1]
    parts = index if isinstance(index, tuple) else (index,)
    if not weight.is_transposed and weight.group is None and all(map(_keeps_all, parts)):
        return make(weight.fisher, result)  # axes of size 1 are added, as by `unsqueeze`
    whole = isinstance(index, int) or (isinstance(index, Tensor) and index.dim() == 0)
    # Python takes True for the integer 1; as an index it adds an axis.
    single = whole and not isinstance(index, bool) and not torch.compiler.is_compiling()
    if weight.dim() == 3 and weight.group is None and single:
        stacked = weight.fisher.groups is not None
        group = int(index) % weight.shape[0] if stacked else None
        return make(weight.fisher, result, weight.is_transposed, group)
    is_table = weight.fisher.layout.is_transposed
    # A slice of a table leaves out inputs, not outputs: it has no rows of the table's width.
    if weight.dim() == 2 and isinstance(index, slice) and not (weight.is_transposed or is_table):
        return make(weight.fisher, result, False, weight.group)
    return None


def _keeps_all(index: object) -> bool:
    return index is None or index is Ellipsis or (isinstance(index, slice) and index == slice(None))


def bare(weight: Tensor) -> Tensor:
    """Return a weight of any subclass as the tensor that it is."""
    with DisableTorchFunctionSubclass():
        return weight.as_subclass(Tensor)
