"""`F.embedding`: every index is one row, the indicator of the entry it looks up."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_kernels
from sngd_compile.layout import Layout
from sngd_compile.rules.base import Call, Rule, Use
from sngd_compile.rules.registry import register_rule
from sngd_compile.rules.structure import Planned, register_structure

# A geometry is made of integers, so None cannot stand in one; no entry has this number.
NO_PADDING = -1

REFUSED = {
    "max_norm": "the forward renormalises entries in place",
    "scale_grad_by_freq": "the gradient is divided by frequencies, which SNGD does itself",
    "sparse": "its gradient is sparse, which no root can act on; set sparse=False",
}
"""Options under which a table is left, and why."""


@register_rule
class Embedding(Rule):
    """`y = W^T e_i` for a table W `[V, E]`: `E[e_i e_i^T]` is the diagonal of frequencies.

    The entry `padding_idx` gets no gradient, so its Fisher is zero; its positions count as rows.

    Source: docs/method.md, local Fishers.
    """

    name = "embedding"
    targets = (F.embedding, torch.embedding)
    signature = inspect.signature(F.embedding)
    kind = "diagonal"

    def match(self, call: Call) -> Use | str:
        """Take the table, unless its gradient or its entries are changed on the way."""
        weight = call.parameter("weight")
        if weight is None:
            return "F.embedding uses it, but not as its weight"
        for name, change in REFUSED.items():
            if call.arguments[name] not in (None, False):
                return f"F.embedding with {name}={call.arguments[name]}: {change}"
        padding = call.arguments["padding_idx"]
        if padding is not None and not isinstance(padding, int):
            return "F.embedding with a padding_idx computed in the forward"
        entries = weight.shape[0]
        # Counted from the front: a padding_idx of -1, the last entry, would be NO_PADDING.
        geometry = (entries, NO_PADDING if padding is None else padding % entries)
        layout = Layout.transposed(weight.shape)
        return Use(call.arguments["weight"], (call.arguments["input"],), layout, None, geometry)

    @staticmethod
    def padding(use: Use) -> int | None:
        """Return the padding index of a use."""
        return None if use.geometry[1] == NO_PADDING else use.geometry[1]

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return the indices, one row each."""
        return [inputs[0].reshape(-1)]

    def rows(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        """Return the indicators, `[N, V]`; those of the padding index are zero."""
        entries, padding = geometry
        rows = F.one_hot(inputs[0], entries).to(torch.get_default_dtype())
        if padding != NO_PADDING:
            rows[:, padding] = 0
        return rows

    def diagonal(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add the counts of the entries to `out`, `[V]`; the table has no bias."""
        entries, padding = geometry
        padding_idx = None if padding == NO_PADDING else padding
        return sngd_kernels.token_counts(samples[0], entries, padding_idx=padding_idx, out=out)


@register_structure(nn.Embedding)
def embedding_structure(module: nn.Module) -> dict[str, Planned]:
    """Describe a table whose class looks it up in a way of its own."""
    weight = module._parameters["weight"]
    assert weight is not None
    return {"weight": Planned(Embedding.name, Layout.transposed(weight.shape), None, "diagonal")}
