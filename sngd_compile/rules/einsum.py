"""`torch.einsum` of an activation and a parameter: its indices say which are groups, K and O."""

from __future__ import annotations

import inspect
import string
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from sngd_compile.layout import Layout
from sngd_compile.rules.base import Call, Rule, Use
from sngd_compile.rules.registry import register_rule

REST = "..."
MEETS_NOTHING = "torch.einsum sums the parameter over an index of its own first"


@dataclass(frozen=True)
class Indices:
    """The axes of a parameter by what happens to them.

    Args:
        groups: Shared by all three: each index has a local Fisher of its own.
        outputs: Of the parameter and of the result.
        contracted: Of the parameter and of the activation.
    """

    groups: str
    outputs: str
    contracted: str


@register_rule
class Einsum(Rule):
    """`torch.einsum(equation, x, W)` or `(equation, W, x)` without repeated indices.

    An index of x that the result lacks is summed, one that W lacks gives rows. The geometry holds
    the number of summed, of group and of contracted axes, these axes of x, and the sizes of the
    last two kinds.

    Source: docs/method.md, local Fishers.
    """

    name = "einsum"
    targets: ClassVar[tuple[Any, ...]] = (torch.einsum,)
    signature = inspect.signature(lambda equation, *operands: ...)

    def match(self, call: Call) -> Use | str:
        """Take the one operand that is a parameter."""
        equation, operands = call.arguments["equation"], call.arguments["operands"]
        if len(operands) == 1 and isinstance(operands[0], list | tuple):
            operands = tuple(operands[0])
        if not isinstance(equation, str) or len(operands) != 2:
            return "torch.einsum of more or less than two operands, or with lists of indices"
        weights = [call.parameters.get(operand) for operand in operands]
        place = 0 if weights[0] is not None else 1
        weight, other = weights[place], weights[1 - place]
        if weight is None or other is not None:
            return "torch.einsum of two parameters: no activation enters it"
        terms, result = _parse(equation)
        own, met = terms[place], terms[1 - place]
        indices = _indices(own, met, result)
        if isinstance(indices, str):
            return indices
        sizes = dict(zip(own, weight.shape, strict=True))
        layout = _layout(own, sizes, indices)
        inputs = (operands[1 - place],)
        geometry = _geometry(met, result, indices, sizes)
        return Use(operands[place], inputs, layout, None, geometry)

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return `[N, G, K]`; an axis of size 1 is repeated as einsum does."""
        summed, grouped, contracted, *rest = geometry
        named = summed + grouped + contracted
        places, sizes = rest[:named], rest[named:]
        x = inputs[0]
        axes = [axis % x.dim() for axis in places]
        free = [axis for axis in range(x.dim()) if axis not in axes]
        kept = axes[summed:]
        x = x.permute(*axes[:summed], *free, *kept)
        x = x.sum(tuple(range(summed))) if summed else x
        for axis, size in enumerate(sizes, len(free)):
            # einsum repeats an axis of size 1: the parameter's one element multiplies the sum of
            # all.
            x = x.sum(axis, keepdim=True) if size == 1 else x
        x = x.expand(*x.shape[: len(free)], *sizes)
        groups, width = prod(sizes[:grouped]), prod(sizes[grouped:])
        return [x.reshape(prod(x.shape[: len(free)]), groups, width)]

    def rows(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        """Return `[N, K]`, or `[G, N, K]` where the equation has groups."""
        return inputs[0].transpose(0, 1) if geometry[1] else inputs[0].squeeze(1)


def _parse(equation: str) -> tuple[list[str], str]:
    """Split an equation; an ellipsis becomes one character, which no index is."""
    left, arrow, result = equation.replace(" ", "").replace(REST, "*").partition("->")
    if not arrow:
        # What einsum means without an arrow: indices that stand once, in the order of the alphabet.
        counts = {index: left.count(index) for index in string.ascii_letters}
        alone = sorted(index for index, count in counts.items() if count == 1)
        result = ("*" if "*" in left else "") + "".join(alone)
    return left.split(","), result


def _indices(own: str, met: str, result: str) -> Indices | str:
    """Sort the indices of the parameter, or say why the equation is not understood."""
    if len(set(own)) < len(own) or len(set(met)) < len(met):
        return "torch.einsum with an index twice in one operand"
    if "*" in own or ("*" in met and "*" not in result):
        return "torch.einsum with an ellipsis in the parameter, or summed over"
    if any(index not in met and index not in result for index in own):
        return MEETS_NOTHING
    return Indices(
        "".join(index for index in own if index in met and index in result),
        "".join(index for index in own if index not in met),
        "".join(index for index in own if index in met and index not in result),
    )


def _layout(own: str, sizes: dict[str, int], indices: Indices) -> Layout:
    """Bring groups, outputs and contracted axes of the parameter into this order."""
    parts = [indices.groups, indices.outputs, indices.contracted]
    order = tuple(own.index(index) for part in parts for index in part)
    matrix = [prod(sizes[index] for index in part) for part in parts]
    return Layout(tuple(sizes.values()), order, tuple(matrix if matrix[0] > 1 else matrix[1:]))


def _geometry(met: str, result: str, indices: Indices, sizes: dict[str, int]) -> tuple[int, ...]:
    """Number the axes of the activation, from the end where an ellipsis stands before them."""
    # Where the parameter has a single group along an index, the activation has rows.
    groups = "".join(index for index in indices.groups if sizes[index] > 1)
    known = set(result) | set(indices.contracted)
    summed = "".join(index for index in met if index not in known)
    named = summed + groups + indices.contracted
    rest = met.find("*")
    axes = [met.index(i) - (len(met) if 0 <= rest < met.index(i) else 0) for i in named]
    lengths = [sizes[index] for index in groups + indices.contracted]
    counts = (len(summed), len(groups), len(indices.contracted))
    return (*counts, *axes, *lengths)
