"""`w * x` with a bare parameter: every element's rows are the activations that it multiplies."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from sngd_compile.layout import Layout
from sngd_compile.rules.base import Call, Rule, Use
from sngd_compile.rules.channelwise import ChannelwiseRule, widened
from sngd_compile.rules.registry import register_rule


@register_rule
class Scale(ChannelwiseRule):
    """`y = w * x` for a parameter of any shape, broadcast against the activations or they to it.

    A layer's scale, or the weight of a normalisation that is written out. The geometry is the shape
    of the parameter.

    Source: docs/method.md, local Fishers: a scale without a shift has `E[x^2]` per element.
    """

    name = "scale"
    targets = (operator.mul, torch.mul, torch.multiply, Tensor.mul, Tensor.multiply)
    signature = inspect.signature(lambda input, other: ...)

    def match(self, call: Call) -> Use | str:
        """Take the parameter, if the other factor is made of activations."""
        names = [name for name in ("input", "other") if call.parameter(name) is not None]
        if len(names) != 1:
            return "two parameters are multiplied"
        weight = call.parameter(names[0])
        assert weight is not None
        other = call.arguments["other" if names[0] == "input" else "input"]
        if not _is_activation(other):
            return "it is multiplied by no activation: another weight is computed from it"
        layout = Layout.channelwise(weight.shape)
        return Use(call.arguments[names[0]], (other,), layout, None, tuple(weight.shape))

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return `[N, C, 1]`: N places that every one of the C elements multiplies."""
        activations = inputs[0]
        if activations.is_complex():  # the real and the imaginary part are two outputs
            activations = torch.view_as_real(activations).movedim(-1, 0)
        shape = torch.broadcast_shapes(activations.shape, tuple(geometry))
        sizes = (1,) * (len(shape) - len(geometry)) + tuple(geometry)
        shared = [axis for axis, size in enumerate(sizes) if size == 1]
        own = [axis for axis, size in enumerate(sizes) if size != 1]
        values = widened(activations).expand(shape).permute(*shared, *own)
        return [values.reshape(-1, torch.Size(geometry).numel(), 1)]


@register_rule
class ScaleInPlace(Rule):
    """`x *= w`: afterwards the activations that the parameter multiplied are gone."""

    name = "scale in place"
    targets = (operator.imul, Tensor.mul_, Tensor.multiply_)
    signature = Scale.signature

    def match(self, call: Call) -> str:
        """Refuse."""
        return "the product is taken in place, over the activations that its Fisher needs"

    def rows(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        """Never asked for."""
        raise NotImplementedError


def _is_activation(factor: object) -> bool:
    """Say whether a factor depends on the module's input, as far as that can be seen."""
    if isinstance(factor, Tensor):
        return not isinstance(factor, nn.Parameter)
    if not isinstance(factor, fx.Node):
        return False
    reached, new = {factor}, [factor]
    while new:
        node = new.pop()
        if node.op in ("placeholder", "call_module"):
            return True
        fresh = [source for source in node.all_input_nodes if source not in reached]
        reached.update(fresh)
        new += fresh
    return False
