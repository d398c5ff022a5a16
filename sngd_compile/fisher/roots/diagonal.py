"""The root of a diagonal factor: one positive number per weight of an output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sngd_compile.fisher.roots.pairs import Pair, SelfAdjointRoot


class DiagonalRoot(SelfAdjointRoot):
    """The root `R = diag(d + damping)^(-1/2)` of a diagonal factor `d`.

    Args:
        size: D, weights of one output, bias included.
        has_bias: Whether the last coordinate is the bias.
        groups: Leading axis; None for none.
        dtype: float32 or float64.
        device: Where the buffer lives.

    Source: docs/method.md, local Fishers. Law 7 tests `R (G + damping) R^T = I`.
    """

    gain: Tensor

    def __init__(
        self,
        size: int,
        has_bias: bool,
        groups: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Start as the identity."""
        super().__init__()
        self.has_bias = has_bias
        lead = () if groups is None else (groups,)
        self.register_buffer("gain", torch.ones(*lead, size, dtype=dtype, device=device))

    def take_(self, root: Tensor) -> None:
        """Become the root of this diagonal, `[*, D]`, the bias last."""
        self.gain = root

    def matrix(self) -> Tensor:
        """Return the diagonal of `R`, `[*, D]`, the bias last."""
        return self.gain.clone()

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` for `W' [*, O, K]`, `b' [*, O]`."""
        gain = self.gain[..., None, :]
        if bias is None:
            return weight * gain, None
        return weight * gain[..., :-1], bias * gain[..., -1]

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` for `W [*, O, K]`, `b [*, O]`."""
        gain = self.gain[..., None, :]
        if bias is None:
            return weight / gain, None
        return weight / gain[..., :-1], bias / gain[..., -1]

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W' (R x~)` for rows `[N, K]`: the activation side."""
        if bias is None:
            return F.linear(rows * self.gain, weight)
        return F.linear(rows * self.gain[:-1], weight, bias * self.gain[-1])
