"""Weights that multiply one number each: one small local Fisher per element of the parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import sngd_kernels
from sngd_compile.rules.base import Rule


class ChannelwiseRule(Rule):
    """`y_c = w_c x_c + b_c`: per channel c the rows are `(x_c, 1)`.

    Samples are `[N, C, P]`: P rows each, of C channels. `samples` is what a subclass adds. The
    moments are plain reductions, so a few rows more than a factor of size 2 asks for are cheap.

    Source: docs/method.md, local Fishers: per channel `E[(xhat, 1)(xhat, 1)^T]`.
    """

    least_samples, least_rows = 16, 256

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
        return sngd_kernels.channel_second_moment(samples[0], bias=bias, out=out)

    def diagonal(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add every channel's squares, and for its bias the rows' number, to `out` `[C, D]`."""
        moments = sngd_kernels.channel_second_moment(samples[0], bias=bias)
        return out.add_(moments.diagonal(dim1=-2, dim2=-1))


def widened(tensor: Tensor) -> Tensor:
    """Return real numbers of float32 or wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
