"""The triangular root: a Cholesky factorisation that takes the bias first.

Legend: O outputs, K weights of one output, D = K + 1 with a bias (last), K without.
All tensors may have a leading groups axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sngd_kernels
from sngd_compile.fisher.roots.base import Change, Decomposition, FactorRoot, Pair, RootShape
from sngd_compile.registry import register_root


@register_root("cholesky")
class CholeskyRoot(FactorRoot):
    """The root `R = L^-1` of a Cholesky factorisation that takes the bias first.

    With `x~ = (x, 1)`, mean `m = E[x] / g^2` and `g^2 = E[1] + damping` the Schur complement of the
    bias is a damped, centred covariance `C C^T`, and `R x~ = (C^-1 (x - m), 1 / g)`: the local
    Fisher layer centres and whitens. `C^-1` is triangular.

    Args:
        shape: Of the factor.

    Attributes:
        inverse: `C^-1`, `[*, K, K]`, lower triangular.
        gain: `1 / g`, `[*, 1]`: a CPU tensor without axes makes Dynamo trace a frame twice.
        shift: `C^-1 m`, `[*, K]`.

    Source: arXiv 2412.07441 (the local Fisher layer); the bias-first order is derived in
    docs/method.md. Law 7 tests `R (G + damping) R^T = I`.
    """

    inverse: Tensor
    gain: Tensor
    shift: Tensor

    def __init__(self, shape: RootShape) -> None:
        """Start as the identity."""
        super().__init__(shape)
        width = shape.size - shape.has_bias
        self.register_buffer("inverse", shape.identity(width))
        self.register_buffer("gain", shape.full(1.0, 1))
        self.register_buffer("shift", shape.full(0.0, width))

    @classmethod
    def decompose(cls, damped: Tensor, roots: Sequence[Any]) -> Decomposition:
        """Factorise, the bias first, and invert the factor."""
        root, info = sngd_kernels.cholesky_inverse_ex(damped, bias=roots[0].has_bias)
        return Decomposition((root,), info)

    def take_(self, *parts: Tensor) -> None:
        """Become the root `R` `[*, D, D]`, the bias last."""
        (root,) = parts
        if not self.has_bias:
            self.inverse = root
            self.shift = root.new_zeros(root.shape[:-1])
            self.gain = root.new_ones(*root.shape[:-2], 1)
            return
        # Copies: rows of the slice lie K + 1 apart, which misaligns them (decision 2), and a view
        # of the corner would keep the whole root in memory.
        self.inverse = root[..., :-1, :-1].contiguous()
        self.shift = -root[..., :-1, -1]
        self.gain = root[..., -1, -1:].clone()

    def matrix(self) -> Tensor:
        """Return `R` `[*, D, D]`, the bias last."""
        if not self.has_bias:
            return self.inverse.clone()
        root = F.pad(self.inverse, (0, 1, 0, 1))
        root[..., :-1, -1] = -self.shift
        root[..., -1, -1:] = self.gain
        return root

    def channel_numbers(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the three buffers as vectors, where there is one weight a group."""
        inverse, gain, shift = self.numbers()
        if inverse.shape[-1] != 1 or inverse.dim() != 3:
            return None
        return inverse.view(-1), gain.view(-1), shift.view(-1)

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` for `W' [*, O, K]`, `b' [*, O]`."""
        inverse, gain, shift = self.numbers()
        folded = _times(weight, inverse)
        if bias is None:
            return folded, None
        if weight.dim() == 2:
            return folded, torch.addmv(bias * gain, weight, shift, alpha=-1)
        return folded, bias * gain - _times_vector(weight, shift)

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` for `W [*, O, K]`, `b [*, O]`."""
        # A solve by the kept inverse: the factor itself is not kept, which saves a matrix a layer.
        unfolded = _solved(weight, self.inverse)
        if bias is None:
            return unfolded, None
        # `fold` takes from the bias what the shift makes of w', so w' is what gives it back.
        return unfolded, (bias + _times_vector(unfolded, self.shift)) / self.gain

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g R^T` that `w'` has where `w` has `g`."""
        inverse, gain, shift = self.numbers()
        prime = _times(weight, inverse.mT)
        if bias is None:
            return prime, None
        if weight.dim() == 2:
            return torch.addr(prime, bias, shift, alpha=-1), bias * gain
        moved = torch.addcmul(prime, bias[..., None], shift[..., None, :], value=-1)
        return moved, bias * gain

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g' R^-T` that `w` has where `w'` has `g'`."""
        if bias is not None:
            bias = bias / self.gain
            weight = weight + bias[..., None] * self.shift[..., None, :]
        return _solved_transposed(weight, self.inverse), bias

    def moves_to(self, new: Any, outputs: int, width: int) -> tuple[Change, Change]:
        """Return how `w'` and its gradient move: by one product of both triangles, or by each.

        Here the product of both roots is exact enough, since a triangular solve is stable by rows;
        it pays when three pairs of enough rows are moved.
        """
        # With fewer outputs the map between the triangles costs more than it spares (decision 10).
        if isinstance(new, CholeskyRoot) and 4 * outputs >= width:
            between = self.leading_to(new)
            return between.fold, between.from_prime
        return super().moves_to(new, outputs, width)

    def leading_to(self, new: CholeskyRoot) -> CholeskyRoot:
        """Return `R R_new^-1`, the map from `w'` of this root to `w'` of a new one.

        It has the same form, triangular with the bias first. So once it is made, `w'` and each
        momentum take one product, `fold`, and a gradient takes one solve, `from_prime`.
        """
        groups = self.inverse.shape[0] if self.inverse.dim() > 2 else None
        size = self.inverse.shape[-1] + self.has_bias
        nowhere = torch.device("meta")  # nothing is written that is then replaced
        shape = RootShape(size, self.has_bias, groups, self.inverse.dtype, nowhere)
        between = CholeskyRoot(shape)
        between.inverse = _solved(self.inverse, new.inverse)
        between.shift = (self.shift - _times_vector(between.inverse, new.shift)) / new.gain
        between.gain = self.gain / new.gain
        return between

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W' (R x~)` for rows `[N, K]`: the activation side."""
        inverse, gain, shift = self.numbers()
        if bias is None:
            return F.linear(_times(rows, inverse.mT), weight)
        whitened = torch.addmm(shift, rows, inverse.mT, beta=-1)
        return F.linear(whitened, weight, bias * gain)


def _times(x: Tensor, lower: Tensor) -> Tensor:
    """Return `x A` for rows `[*, N, K]` and a triangle `[*, K, K]`."""
    # One weight per output is a number for every group. Where K is larger, the zeros that a product
    # by blocks would spare are worth less than its calls: wide layers have sketches.
    if lower.shape[-1] == 1:
        return x * lower
    # `matmul` would first find out that it is this.
    return torch.mm(x, lower) if lower.dim() == 2 else x @ lower


def _solved(x: Tensor, lower: Tensor) -> Tensor:
    """Return `x A^-1`."""
    if lower.shape[-1] == 1:
        return x / lower
    solved: Tensor = torch.linalg.solve_triangular(lower, x, upper=False, left=False)
    return solved


def _solved_transposed(x: Tensor, lower: Tensor) -> Tensor:
    """Return `x A^-T`."""
    if lower.shape[-1] == 1:
        return x / lower
    solved: Tensor = torch.linalg.solve_triangular(lower.mT, x, upper=True, left=False)
    return solved


def _times_vector(matrix: Tensor, vector: Tensor) -> Tensor:
    if vector.shape[-1] == 1:
        return (matrix * vector[..., None, :]).squeeze(-1)
    return (matrix @ vector[..., None]).squeeze(-1)
