"""The random generators of this process, as they were: each run draws the same numbers."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Generators:
    """Remember the global generators of Python, NumPy (where it is imported) and torch."""

    def __init__(self) -> None:
        """Remember them as they are now."""
        self.python = random.getstate()
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        numpy: Any = sys.modules.get("numpy")
        self.numpy = None if numpy is None else numpy.random.get_state()

    def restore(self) -> None:
        """Set them to what they were."""
        random.setstate(self.python)
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        if self.numpy is not None:
            numpy: Any = sys.modules["numpy"]
            numpy.random.set_state(self.numpy)


@contextmanager
def generators_kept() -> Iterator[Generators]:
    """Give the generators of now, and set them back in the end."""
    generators = Generators()
    try:
        yield generators
    finally:
        generators.restore()
