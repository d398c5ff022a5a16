"""A bar on the terminal while a large model is looked at."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TypeVar

Item = TypeVar("Item")

LARGE = 128
"""Modules with parameters from which on a model is worth a bar: they take about two seconds."""


@contextmanager
def tracked(items: Sequence[Item], doing: str) -> Iterator[Iterable[Item]]:
    """Give the items, and show how many of them are done.

    Nothing is shown of a few items, where standard error is no terminal, or in any process but the
    first.

    Args:
        items: One for each module.
        doing: What is done with them.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    if len(items) < LARGE or not is_first or not sys.stderr.isatty():
        yield items
        return
    bar = import_module("rich.progress").Progress(  # most processes show none and load none
        console=import_module("rich.console").Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # what others print meanwhile is left alone
        redirect_stderr=False,
    )
    with bar:
        yield bar.track(items, description=doing)
