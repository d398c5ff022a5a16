"""What reconstructed modules of a class need besides folded attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Members:
    """Members of the generated class of a reconstructed module.

    Args:
        attributes: The members by name.
        prepare: Called when a module, still of its original class, is reconstructed.
        restore: Called when it is folded, of its original class again.
        on_class: Called with the generated class, once.
    """

    attributes: Mapping[str, Any]
    prepare: Callable[[Any], None]
    restore: Callable[[Any], None]
    on_class: Callable[[type], None]


_members: dict[type[nn.Module], Members] = {}


def register_members(module_class: type[nn.Module], members: Members) -> None:
    """Let reconstructed modules of a class, and of those that derive from it, have `members`."""
    _members[module_class] = members


def members_of(module_class: type[nn.Module]) -> list[Members]:
    """List what is registered for a class and its bases."""
    return [_members[base] for base in module_class.__mro__ if base in _members]
