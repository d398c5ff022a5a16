"""`w[indices]`: a table of a module's own, looked up by indexing."""

from __future__ import annotations

import inspect
import operator

import torch
from torch import Tensor

from sngd_compile.layout import Layout
from sngd_compile.rules.base import Call, Use
from sngd_compile.rules.embedding import NO_PADDING, Embedding
from sngd_compile.rules.registry import register_rule


@register_rule
class Lookup(Embedding):
    """`y = W^T e_i`, as an embedding; known once the call is made, for an index may be anything.

    A slice looks every entry up that it holds.

    Source: docs/method.md, local Fishers.
    """

    name = "lookup"
    targets = (operator.getitem, Tensor.__getitem__)  # type: ignore[assignment]
    signature = inspect.signature(lambda table, index: ...)

    def match(self, call: Call) -> Use | str:
        """Take the table if the index is a tensor of integers or a slice."""
        table, index = call.parameter("table"), call.arguments["index"]
        if table is None or table.dim() != 2:
            return "it is indexed, and is no table [V, E]"
        if isinstance(index, slice) and isinstance(call.arguments["table"], Tensor):
            index = torch.arange(table.shape[0], device=table.device)[index]
        kinds = (torch.int64, torch.int32)
        if not isinstance(index, Tensor) or index.dtype not in kinds:
            return "no rule for getitem with an index that is computed in the forward"
        layout = Layout.transposed(table.shape)
        geometry = (table.shape[0], NO_PADDING)
        return Use(call.arguments["table"], (index.long(),), layout, None, geometry)
