"""A bar on the terminal while a large model is looked at, where rich is installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

Item = TypeVar("Item")

LARGE = 128
"""Modules with parameters from which on a model is worth a bar: they take about two seconds."""


@contextmanager
def tracked(items: Sequence[Item], doing: str) -> Iterator[Iterable[Item]]:
    """Give the items, and show how many of them are done.

    Nothing is shown of a few items, where standard error is no terminal, in any process but the
    first, or without rich.

    Args:
        items: One for each module.
        doing: What is done with them.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    bar = _bar() if len(items) >= LARGE and is_first and sys.stderr.isatty() else None
    if bar is None:
        yield items
        return
    with bar:
        yield bar.track(items, description=doing)


def _bar() -> Any:
    """Return a bar that leaves what others print alone, or None without rich."""
    try:
        console = import_module("rich.console").Console(stderr=True)
        made = import_module("rich.progress").Progress
    except ImportError:
        return None
    return made(console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
