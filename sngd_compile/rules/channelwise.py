"""Weights that multiply one number each: one small local Fisher per element of the parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sngd_compile.rules.base import Rule


class ChannelwiseRule(Rule):
    """`y_c = w_c x_c + b_c`: per channel c the rows are `(x_c, 1)`.

    Samples are `[N, C, P]`: P rows each, of C channels. `samples` is what a subclass adds. The
    moments are plain reductions, so a few rows more than a factor of size 2 asks for are cheap.

    Source: docs/method.md, local Fishers: per channel `E[(xhat, 1)(xhat, 1)^T]`.
    """

    least_samples = 256

    def rows_per_sample(self, samples: Sequence[Tensor], geometry: Sequence[int]) -> int:
        """Return P, rows of one sample."""
        return samples[0].shape[2]

    def rows(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        """Return the factors of every channel's weight, `[C, N * P, 1]`."""
        return inputs[0].transpose(0, 1).flatten(1)[..., None]

    def second_moment(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add every channel's sums to `out`, `[C, 1, 1]` or, with a bias, `[C, 2, 2]`."""
        self._add_squares(samples[0], bias, out.diagonal(dim1=-2, dim2=-1))
        if bias:
            sums = samples[0].sum((0, 2))
            out[:, 0, 1].add_(sums)
            out[:, 1, 0].add_(sums)
        return out

    def diagonal(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add every channel's squares, and for its bias the rows' number, to `out` `[C, D]`."""
        self._add_squares(samples[0], bias, out)
        return out

    def _add_squares(self, values: Tensor, bias: bool, out: Tensor) -> None:
        out[:, 0].add_(torch.einsum("ncp,ncp->c", values, values))
        if bias:
            out[:, 1].add_(values.shape[0] * values.shape[2])


def widened(tensor: Tensor) -> Tensor:
    """Return real numbers of float32 or wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
