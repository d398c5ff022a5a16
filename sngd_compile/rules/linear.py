"""`F.linear`: every index but the last of the input is one row."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from sngd_compile.layout import Layout
from sngd_compile.rules.base import Call, Rule, Use
from sngd_compile.rules.registry import register_rule


@register_rule
class Linear(Rule):
    """`y = W x~` for inputs `[..., K]`: the rows are the inputs (the expand setting).

    Source: docs/method.md, local Fishers; arXiv 2311.00636 for weights shared over positions.
    """

    name = "linear"
    takes_halves = True
    targets = (F.linear,)
    signature = inspect.signature(lambda input, weight, bias=None: ...)

    def match(self, call: Call) -> Use | str:
        """Take the weight; a bias of its own joins the local Fisher."""
        weight = call.parameter("weight")
        if weight is None:
            return "F.linear uses it, but not as its weight"
        if weight.dim() != 2:
            return f"F.linear with a weight of {weight.dim()} dimensions: expected [O, K]"
        bias = call.arguments["bias"] if call.parameter("bias") is not None else None
        inputs = (call.arguments["input"],)
        layout = Layout.plain(weight.shape)
        return Use(call.arguments["weight"], inputs, layout, bias, is_linear=True)

    def rows(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        """Return the inputs themselves, `[N, K]`."""
        return inputs[0]

    def output_rows(self, outputs: Tensor, geometry: Sequence[int]) -> Tensor:
        """Return `[N, 1, O]`: every row is a sample."""
        # Positions of a sequence too. Where the loss is a mean over sequences B is too large by
        # their number: steps get too short rather than too long (decision 11).
        return outputs.reshape(-1, 1, outputs.shape[-1])
