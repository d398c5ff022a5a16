"""A weight and its bias as one matrix, and what several kinds of root share.

Legend: O outputs, K weights of one output, D = K + 1 with a bias (last), K without.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sngd_compile.fisher.roots.base import FactorRoot, Pair


def join(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `[W b]`, `[*, O, D]`."""
    return weight if bias is None else torch.cat([weight, bias[..., None]], -1)


def split(joined: Tensor, bias: Tensor | None) -> Pair:
    """Take `[*, O, D]` apart again, into as many as `bias` says there were."""
    return (joined, None) if bias is None else (joined[..., :-1], joined[..., -1])


class SelfAdjointRoot(FactorRoot):
    """A root with `R = R^T`: gradients move as weights do, the other way round."""

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g R^T` that `w'` has where `w` has `g`."""
        return self.fold(weight, bias)

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g' R^-T` that `w` has where `w'` has `g'`."""
        return self.unfold(weight, bias)
