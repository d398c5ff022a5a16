"""A weight and its bias: the pair that every root maps, and what several kinds of root share.

Legend: O outputs, K weights of one output, D = K + 1 with a bias (last), K without.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor | None]
"""`W [*, O, K]` and `b [*, O]`, or no bias."""


def join(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `[W b]`, `[*, O, D]`."""
    return weight if bias is None else torch.cat([weight, bias[..., None]], -1)


def split(joined: Tensor, bias: Tensor | None) -> Pair:
    """Take `[*, O, D]` apart again, into as many as `bias` says there were."""
    return (joined, None) if bias is None else (joined[..., :-1], joined[..., -1])


def identity(size: int, groups: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `[D, D]` or `[groups, D, D]` identities, each with memory of its own."""
    if device.type == "meta":  # where `torch.eye` is Python, slower than a small root is found
        lead = () if groups is None else (groups,)
        return torch.empty(*lead, size, size, dtype=dtype, device=device)
    eye = torch.eye(size, dtype=dtype, device=device)
    return eye if groups is None else eye.expand(groups, size, size).clone()


class SelfAdjointRoot(nn.Module):
    """A root with `R = R^T`: gradients move as weights do, the other way round."""

    @abstractmethod
    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` for `W' [*, O, K]`, `b' [*, O]`."""

    @abstractmethod
    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` for `W [*, O, K]`, `b [*, O]`."""

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g R^T` that `w'` has where `w` has `g`."""
        return self.fold(weight, bias)

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g' R^-T` that `w` has where `w'` has `g'`."""
        return self.unfold(weight, bias)
