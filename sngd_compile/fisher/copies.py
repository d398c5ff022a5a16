"""Which module is a deep copy of which, and whether somebody writes to the copy."""

from __future__ import annotations

import copy
from typing import Any, TypeVar
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)

_origins: WeakKeyDictionary[nn.Module, ReferenceType[nn.Module]] = WeakKeyDictionary()
_sums: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()


def deep_copy(layer: Layer, memo: dict[int, Any]) -> Layer:
    """Copy a module as `copy.deepcopy` would, and remember of what it is one."""
    copied = type(layer).__new__(type(layer))
    memo[id(layer)] = copied
    copied.__dict__.update(copy.deepcopy(layer.__dict__, memo))
    _origins[copied] = ref(layer)
    return copied


def origin_of(layer: nn.Module) -> nn.Module | None:
    """Return what a module is a deep copy of, if that is alive."""
    known = _origins.get(layer)
    return None if known is None else known()


def have_origins() -> bool:
    """Say whether any live module is such a copy."""
    return bool(_origins)


def expect_change(layer: nn.Module) -> None:
    """Note that its weight changed as it should: it was loaded, or has a new root."""
    _sums.pop(layer, None)


def is_written_to(layer: nn.Module, total: float) -> bool:
    """Say whether the sum of a weight is another than last time, though nobody expected that."""
    before = _sums.get(layer, total)
    _sums[layer] = total
    return before != total
