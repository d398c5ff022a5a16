"""Changes that happen whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def all_or_nothing(tensors: Iterable[Tensor | None]) -> Iterator[None]:
    """Give tensors their numbers back where what changes them is interrupted.

    A root and the weights in its coordinates belong together: one of them alone is another
    function, and nobody would notice. So Ctrl-C, a device without memory or another process's
    failure leaves both as they were.

    Args:
        tensors: All that is written to, None for what is not there; copied once.
    """
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors if tensor is not None]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, numbers in kept:
                tensor.copy_(numbers)
        raise
