"""What one file can add: a kind of local Fisher, a kind of root, a rule, each found by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


class Registry(Mapping[str, Any]):
    """A table that fills itself when the files that register in it are imported.

    Args:
        noun: What an entry is, for errors.
    """

    def __init__(self, noun: str) -> None:
        """Start empty."""
        self.noun = noun
        self._entries: dict[str, Any] = {}

    def register(self, name: str, entry: Any) -> Any:
        """Add an entry, and return it.

        Raises:
            ValueError: The name is taken.
        """
        if name in self._entries:
            raise ValueError(f"there is a {self.noun} {name!r} already: choose another name")
        self._entries[name] = entry
        return entry

    def remove(self, name: str) -> None:
        """Take an entry out again, as a test does."""
        del self._entries[name]

    def __getitem__(self, name: str) -> Any:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


KINDS = Registry("kind of local Fisher")
"""`Config.fisher` to a `FisherKind`: one file each in `sngd_compile/fisher/kinds/`."""

ROOTS = Registry("kind of root")
"""`Config.root` to a class of `FactorRoot`: one file each in `sngd_compile/fisher/roots/`."""

RULES: dict[str, Any] = {}
"""Rules by name, in the order in which they are tried: one file each in `sngd_compile/rules/`.

It is here because the op that observes carries the name of a rule in its graph, and looks it up.
"""


def register_root(name: str) -> Callable[[type[Any]], type[Any]]:
    """Register, as a decorator, the class of a root; see `FactorRoot`."""
    return lambda made: ROOTS.register(name, made)


def register_kind(made: type[Any]) -> type[Any]:
    """Register, as a decorator, the class of a local Fisher under its `name`; see `FisherKind`."""
    KINDS.register(made.name, made())
    return made
