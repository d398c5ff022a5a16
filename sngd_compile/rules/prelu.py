"""`F.prelu`: the rows of a slope are the negative parts of the activations that it multiplies."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from sngd_compile.layout import Layout
from sngd_compile.rules.base import Call, Use
from sngd_compile.rules.channelwise import ChannelwiseRule, widened
from sngd_compile.rules.registry import register_rule


@register_rule
class PReLU(ChannelwiseRule):
    """`y = max(x, 0) + w min(x, 0)`, one slope for all or one per channel, axis 1 of `[N, C, *]`.

    Source: docs/method.md, local Fishers: a scale without a shift has `E[x^2]` per element.
    """

    name = "prelu"
    targets = (torch.prelu, Tensor.prelu)
    signature = inspect.signature(lambda input, weight: ...)

    def match(self, call: Call) -> Use | str:
        """Take the slopes."""
        weight = call.parameter("weight")
        if weight is None:
            return "prelu uses it, but not as its weight"
        layout = Layout.channelwise(weight.shape)
        inputs = (call.arguments["input"],)
        return Use(call.arguments["weight"], inputs, layout, None, (weight.numel(),))

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return the negative parts, `[N, C, P]`."""
        (slopes,) = geometry
        negative = widened(inputs[0]).clamp(max=0)
        if slopes == 1:
            return [negative.reshape(-1, 1, 1)]
        return [negative.reshape(negative.shape[0], slopes, -1)]
