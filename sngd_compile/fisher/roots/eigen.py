"""The root of a Kronecker-factored local Fisher with exact damping: `w = Q_B (S o w') Q_A^T`."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sngd_compile.fisher.roots.pairs import Pair, identity, join, split


class Eigenbasis(nn.Module):
    """The eigenvectors and eigenvalues of one factor, `G = Q diag(d) Q^T`.

    Args:
        size: D, weights of one output with the bias, or O.
        has_bias: Whether the last coordinate is the bias.
        groups: Leading axis; None for none.
        dtype: float32 or float64.
        device: Where the buffers live.
    """

    vectors: Tensor
    values: Tensor

    def __init__(
        self,
        size: int,
        has_bias: bool,
        groups: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Start as those of a factor of zeros."""
        super().__init__()
        self.has_bias = has_bias
        lead = () if groups is None else (groups,)
        self.register_buffer("vectors", identity(size, groups, dtype, device))
        self.register_buffer("values", torch.zeros(*lead, size, dtype=dtype, device=device))

    def take_(self, values: Tensor, vectors: Tensor) -> None:
        """Become these, `[*, D]` and, in columns, `[*, D, D]`."""
        self.values, self.vectors = values, vectors


class EigenRoot(nn.Module):
    """Three local Fisher layers: a rotation, a gain of its own for every weight, a rotation.

    With `w = Q_B (S o w') Q_A^T` and `S = (d_B d_A^T + damping)^(-1/2)`, by elements, a step of
    plain gradient descent on `w'` is `w <- w - lr (B (x) A + damping)^-1 dL/dw`: K-FAC whose
    damping is that of the product, not of each factor.

    Args:
        input_basis: Of A, `[*, D, D]`, the bias last.
        output_basis: Of B, `[*, O, O]`.

    Attributes:
        gain: S, `[*, O, D]`.

    Source: K-FAC (arXiv 1503.05671), section 6.2, damping of the product; its basis is that of
    EK-FAC (arXiv 1806.03884). Tested by tests/fishers/test_eigen.py.
    """

    gain: Tensor

    def __init__(self, input_basis: Eigenbasis, output_basis: Eigenbasis) -> None:
        """Hold both, with a damping of 1: factors of zeros have the identity as root."""
        super().__init__()
        self.input_basis, self.output_basis = input_basis, output_basis
        self.has_bias = input_basis.has_bias
        self.register_buffer("gain", self._gain(1.0))

    @property
    def sides(self) -> list[Eigenbasis]:
        """What is decomposed one by one."""
        return [self.input_basis, self.output_basis]

    def damped_(self, damping: float) -> Self:
        """Take the damping of `B (x) A`, in its units."""
        self.gain = self._gain(damping)
        return self

    @property
    def is_definite(self) -> bool:
        """Whether every damped eigenvalue is positive."""
        return bool((self.gain.isfinite() & (self.gain > 0)).all())

    def matrix(self) -> Tensor:
        """Return `Q_A^T` `[*, D, D]`, the bias last."""
        return self.input_basis.vectors.mT.clone()

    def output_matrix(self) -> Tensor:
        """Return `Q_B^T` `[*, O, O]`."""
        return self.output_basis.vectors.mT.clone()

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `Q_B (S o w') Q_A^T` for `W' [*, O, K]`, `b' [*, O]`."""
        return split(self._out_of_basis(self.gain * join(weight, bias)), bias)

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `(Q_B^T w Q_A) / S` for `W [*, O, K]`, `b [*, O]`."""
        return split(self._into_basis(join(weight, bias)) / self.gain, bias)

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `S o (Q_B^T g Q_A)` that `w'` has where `w` has `g`."""
        return split(self._into_basis(join(weight, bias)) * self.gain, bias)

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `Q_B (g' / S) Q_A^T` that `w` has where `w'` has `g'`."""
        return split(self._out_of_basis(join(weight, bias) / self.gain), bias)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `Q_B (S o W') (Q_A^T x~)` for rows `[N, K]`: the activation side."""
        turned = self.input_basis.vectors.mT
        if bias is None:
            rotated = F.linear(rows, turned)
        else:
            rotated = F.linear(rows, turned[:, :-1], turned[:, -1])
        scaled = F.linear(rotated, self.gain * join(weight, bias))
        return F.linear(scaled, self.output_basis.vectors)

    def _gain(self, damping: float) -> Tensor:
        outputs, inputs = self.output_basis.values, self.input_basis.values
        return (outputs[..., :, None] * inputs[..., None, :] + damping).rsqrt()

    def _into_basis(self, joined: Tensor) -> Tensor:
        return self.output_basis.vectors.mT @ joined @ self.input_basis.vectors

    def _out_of_basis(self, joined: Tensor) -> Tensor:
        return self.output_basis.vectors @ joined @ self.input_basis.vectors.mT
