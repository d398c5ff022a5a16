"""Buffers that hold statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn


class WideBuffers(nn.Module):
    """A module whose buffers follow a move or a widening, never a narrowing.

    Half a statistic is none: `net.half()` leaves them as they are.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for module in self.modules():
            for name, buffer in module._buffers.items():
                if buffer is None:
                    continue
                moved = fn(buffer)
                if moved.is_floating_point() and moved.dtype.itemsize < buffer.dtype.itemsize:
                    moved = buffer.to(moved.device)
                module._buffers[name] = moved
        return self
