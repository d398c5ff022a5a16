"""`w[indices]`: a table of a module's own, looked up by indexing."""

from __future__ import annotations

import inspect
import operator
from math import prod

import torch
from torch import Tensor

from sngd_compile.layout import Layout
from sngd_compile.rules.base import Call, Use
from sngd_compile.rules.embedding import NO_PADDING, Embedding
from sngd_compile.rules.registry import register_rule


@register_rule
class Lookup(Embedding):
    """`y = W^T e_i`, as an embedding; known once the call is made, for an index may be anything.

    A table is `[V, ...]` or `[..., V]`. A slice looks every entry up that it holds.

    Source: docs/method.md, local Fishers.
    """

    name = "lookup"
    targets = (operator.getitem, Tensor.__getitem__)  # type: ignore[assignment]
    signature = inspect.signature(lambda table, index: ...)

    def match(self, call: Call) -> Use | str:
        """Take the table if one axis of it is indexed, all others being taken whole."""
        table, index = call.parameter("table"), call.arguments["index"]
        if table is None or table.dim() < 2:
            return "it is indexed, and is no table [V, E]"
        # A node says nothing of what the index will be.
        if not isinstance(call.arguments["table"], Tensor):
            return "no rule for getitem with an index that is computed in the forward"
        indices = index if isinstance(index, tuple) else (index,)
        axes = [axis for axis, one in enumerate(indices) if not _is_whole(one)]
        if len(axes) != 1 or axes[0] not in (0, table.dim() - 1):
            return "no rule for getitem with indices of several axes"
        axis = axes[0]
        entries = table.shape[axis]
        numbers = _numbers(indices[axis], entries, table.device)
        if numbers is None:
            return "no rule for getitem with this kind of index"
        return Use(
            call.arguments["table"], (numbers,), _layout(table, axis), None, (entries, NO_PADDING)
        )


def _is_whole(index: object) -> bool:
    return isinstance(index, slice) and index == slice(None)


def _numbers(index: object, entries: int, device: torch.device) -> Tensor | None:
    """Return which entries an index takes, each as often as it takes it."""
    if isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32):
        return index.long() % entries  # -1 is the last entry
    if isinstance(index, Tensor) and index.dtype == torch.bool and index.dim() == 1:
        return index.nonzero()
    if isinstance(index, slice | int | list) and not isinstance(index, bool):
        return torch.arange(entries, device=device)[index].reshape(-1)
    return None


def _layout(table: Tensor, axis: int) -> Layout:
    """Lay a table out so that its entries are the columns."""
    shape = tuple(table.shape)
    if axis == 0:
        matrix = (shape[0], prod(shape[1:]))
        return Layout(matrix, (1, 0), matrix[::-1])
    return Layout(shape, tuple(range(len(shape))), (prod(shape[:-1]), shape[-1]))
