"""Parameters whose numbers a model holds in a second place: a list, a buffer, another parameter.

What is read there would be `w'`; the attribute of a reconstructed module alone gives `w`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from sngd_compile.capture.side_effects import members_of
from sngd_compile.plan.reasons import PLAIN
from sngd_compile.plan.records import qualified
from sngd_compile.torch_private import FLAT_WEIGHTS

DEPTH = 4
"""Containers inside one another that are looked into."""

_KNOWN = frozenset(vars(nn.Module())) | {FLAT_WEIGHTS}
_OPAQUE = (nn.Module, Optimizer, ModuleType, FunctionType, type)


class Held(NamedTuple):
    """A tensor that a model holds: where its memory begins and ends, and what to call it.

    Args:
        start: Where it begins.
        end: Where it ends.
        place: In words.
        parameter: Itself, where it is held as a parameter.
    """

    start: int
    end: int
    place: str
    parameter: Tensor | None


def held_twice(model: nn.Module) -> dict[Tensor, str]:
    """Say of each parameter that a model holds in a second place why it is left as it is."""
    held = sorted(_all_held(model), key=lambda each: each[:2])
    found: dict[Tensor, str] = {}
    furthest = held[0] if held else None
    for each in held[1:]:
        assert furthest is not None
        if each.start < furthest.end:
            for one, other in ((each, furthest), (furthest, each)):
                if one.parameter is not None:
                    found.setdefault(one.parameter, _reason(other.place))
        furthest = max(furthest, each, key=lambda span: span.end)
    return found


def _reason(place: str) -> str:
    return (
        f"{place} has its numbers too, where w' would stand for w; {PLAIN}. To change that, read "
        "the attribute of its module at each use"
    )


def _all_held(model: nn.Module) -> Iterator[Held]:
    """Yield each parameter once, however many modules share it, and all other tensors."""
    for name, parameter in model.named_parameters():
        yield Held(*_span(parameter), f"the parameter {name}", parameter)
    for name, module in model.named_modules():
        for own, buffer in module._buffers.items():
            if buffer is not None:
                yield Held(*_span(buffer), f"the buffer {qualified(name, own)}", None)
        kept = {} if isinstance(module, torch.jit.ScriptModule) else vars(module)
        for own, value in kept.items():
            for tensor in () if own in _KNOWN else _tensors_in(value, DEPTH):
                yield Held(*_span(tensor), f"the attribute {qualified(name, own)}", None)


def _tensors_in(value: Any, depth: int) -> Iterator[Tensor]:
    """Yield the tensors in containers, in what a function is called with, and in records."""
    if isinstance(value, Tensor):
        yield value
    elif depth:
        for member in _members(value):
            yield from _tensors_in(member, depth - 1)


def _members(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from dict.values(value)  # a key is only compared
    elif held := members_of(value):
        yield from held
    elif isinstance(value, partial):
        yield from (*value.args, *value.keywords.values())
    elif not isinstance(value, _OPAQUE):
        yield from list(getattr(value, "__dict__", {}).values())


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return where the memory of a tensor begins and ends; without any, a place of its own."""
    has_memory = not is_lazy(tensor) and tensor.layout is torch.strided and not tensor.is_nested
    start = tensor.data_ptr() if has_memory and tensor.numel() else 0
    if not start:
        return id(tensor), id(tensor) + 1
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    return start, start + (last + 1) * tensor.element_size()
