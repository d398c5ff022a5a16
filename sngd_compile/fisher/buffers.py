"""Buffers that hold statistics, and those that hold what parameters have lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

# `w'` moves to a new root at each refresh, and is rounded to the parameter's dtype: alone, that is
# a random walk of the function. So a Fisher layer holds what was rounded away, the next refresh
# moves the sum of both, and the network stays one rounding away from where its steps have led.
REMAINDERS = ("weight_remainder", "bias_remainder")
"""Names of the buffers of a Fisher layer, of the shapes of its parameters; None where none is."""

REMAINDER_DTYPE = torch.bfloat16
"""Of a remainder, of float16 too, whose own exponents end where remainders begin."""


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
                is_narrower = moved.dtype.itemsize < buffer.dtype.itemsize
                if moved.is_floating_point() and (is_narrower or name in REMAINDERS):
                    moved = buffer.to(moved.device)
                module._buffers[name] = moved
        return self


def is_narrow(parameter: Tensor) -> bool:
    """Say whether a parameter is rounded so coarsely that its remainder is kept."""
    return parameter.dtype.itemsize < torch.float32.itemsize


def remainder_bytes(parameter: Tensor) -> int:
    """Return the memory of a parameter's remainder."""
    return parameter.numel() * REMAINDER_DTYPE.itemsize if is_narrow(parameter) else 0
