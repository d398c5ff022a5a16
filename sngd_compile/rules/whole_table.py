"""`w.repeat(n, 1, 1)`: a table that is read as a whole, as learned queries are."""

from __future__ import annotations

import inspect
from math import prod

import torch
from torch import Tensor

from sngd_compile.layout import Layout
from sngd_compile.rules.base import Call, Use
from sngd_compile.rules.embedding import NO_PADDING, Embedding
from sngd_compile.rules.registry import register_rule


@register_rule
class WholeTable(Embedding):
    """`y = [W; W; ...]`: every entry of a table is looked up equally often; known once called.

    Source: docs/method.md, local Fishers.
    """

    name = "whole_table"
    targets = (Tensor.expand,)  # type: ignore[assignment]
    signature = inspect.signature(lambda table, *sizes: ...)

    def match(self, call: Call) -> Use | str:
        """Take a table `[1, ..., V, E]` whose columns are not repeated."""
        table, sizes = call.parameter("table"), call.arguments["sizes"]
        # Both methods take their sizes one by one or as one sequence.
        sizes = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
        entries_last = table is not None and table.dim() >= 2 and prod(table.shape[:-2]) == 1
        if not isinstance(call.arguments["table"], Tensor) or table is None or not entries_last:
            return "it is repeated, and is no table [V, E]: no rule for the result"
        if sizes[-1] not in self.sizes_of_columns(table):
            return "it is repeated along its columns"
        entries = table.shape[-2]
        indices = torch.arange(entries, device=table.device)
        layout = Layout.transposed(table.shape[-2:])
        return Use(call.arguments["table"], (indices,), layout, None, (entries, NO_PADDING))

    def sizes_of_columns(self, table: Tensor) -> tuple[int, ...]:
        """Return the last sizes that leave the columns as they are."""
        return (-1, table.shape[-1])


@register_rule
class RepeatedTable(WholeTable):
    """The same by `repeat`, whose sizes say how often, where those of `expand` say how many."""

    name = "repeated_table"
    targets = (Tensor.repeat,)  # type: ignore[assignment]

    def sizes_of_columns(self, table: Tensor) -> tuple[int, ...]:
        """Return the one number of times that repeats nothing."""
        return (1,)
