"""Roots `R` of the inverse of a damped factor, `R^T R = G^-1`, and the four maps they give.

Legend: O outputs, K weights of one output, D = K + 1 with a bias (last), K without.
All tensors may have a leading groups axis. `w = w' R` with `w = [W b]`, `w' = [W' b']`:

    fold            w  = w' R           unfold            w' = w R^-1
    to_prime        g' = g R^T          from_prime        g  = g' R^-T        (gradients)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_kernels
from sngd_compile.runtime.diagonal import DiagonalRoot, Pair
from sngd_compile.runtime.triangular import (
    multiply,
    multiply_transposed,
    solve,
    solve_transposed,
)


class CholeskyRoot(nn.Module):
    """The root `R = L^-1` of a Cholesky factorisation that takes the bias first.

    With `x~ = (x, 1)`, mean `m = E[x] / g^2` and `g^2 = E[1] + damping` the Schur complement of the
    bias is a damped, centred covariance `C C^T`, and `R x~ = (C^-1 (x - m), 1 / g)`: the local
    Fisher layer centres and whitens. `C^-1` is triangular, so applying `R` is half of a product.

    Args:
        size: D, weights of one output, bias included.
        has_bias: Whether the last coordinate is the bias.
        groups: Leading axis; None for none.
        dtype: float32 or float64.
        device: Where the buffers live.

    Attributes:
        inverse: `C^-1`, `[*, K, K]`, lower triangular.
        gain: `1 / g`, `[*]`.
        shift: `C^-1 m`, `[*, K]`.

    Source: arXiv 2412.07441 (the local Fisher layer); the bias-first order is derived in
    docs/method.md. Law 7 tests `R (G + damping) R^T = I`.
    """

    inverse: Tensor
    gain: Tensor
    shift: Tensor

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
        lead = () if groups is None else (groups,)
        width = size - 1 if has_bias else size
        eye = torch.eye(width, dtype=dtype, device=device).expand(*lead, width, width)
        self.has_bias = has_bias
        self.register_buffer("inverse", eye.clone())
        self.register_buffer("gain", torch.ones(lead, dtype=dtype, device=device))
        self.register_buffer("shift", torch.zeros(*lead, width, dtype=dtype, device=device))

    def take_(self, root: Tensor) -> None:
        """Become the root `R` `[*, D, D]`, the bias last."""
        if not self.has_bias:
            self.inverse = root
            self.shift = root.new_zeros(root.shape[:-1])
            self.gain = root.new_ones(root.shape[:-2])
            return
        self.inverse = root[..., :-1, :-1].contiguous()
        self.shift = -root[..., :-1, -1]
        self.gain = root[..., -1, -1].clone()

    def matrix(self) -> Tensor:
        """Return `R` `[*, D, D]`, the bias last."""
        if not self.has_bias:
            return self.inverse.clone()
        root = F.pad(self.inverse, (0, 1, 0, 1))
        root[..., :-1, -1] = -self.shift
        root[..., -1, -1] = self.gain
        return root

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` for `W' [*, O, K]`, `b' [*, O]`."""
        folded = multiply(self.inverse, weight)
        if bias is None:
            return folded, None
        return folded, bias * self.gain[..., None] - _times_vector(weight, self.shift)

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` for `W [*, O, K]`, `b [*, O]`."""
        unfolded = solve(self.inverse, weight)
        if bias is None:
            return unfolded, None
        return unfolded, (bias + _times_vector(unfolded, self.shift)) / self.gain[..., None]

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g R^T` that `w'` has where `w` has `g`."""
        prime = multiply_transposed(self.inverse, weight)
        if bias is None:
            return prime, None
        return prime - bias[..., None] * self.shift[..., None, :], bias * self.gain[..., None]

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g' R^-T` that `w` has where `w'` has `g'`."""
        if bias is not None:
            bias = bias / self.gain[..., None]
            weight = weight + bias[..., None] * self.shift[..., None, :]
        return solve_transposed(self.inverse, weight), bias

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W' (R x~)` for rows `[N, K]`: the activation side."""
        whitened = multiply_transposed(self.inverse, rows)
        if bias is None:
            return F.linear(whitened, weight)
        return F.linear(whitened - self.shift, weight, bias * self.gain)


class SymmetricRoot(nn.Module):
    """The symmetric root `R = G^(-1/2)`, by an eigendecomposition.

    Args:
        size: D, weights of one output, bias included.
        has_bias: Whether the last coordinate is the bias.
        groups: Leading axis; None for none.
        dtype: float32 or float64.
        device: Where the buffer lives.

    Source: arXiv 2412.07441, `w = G^(-1/2) w'`. Law 7 tests `R (G + damping) R^T = I`.
    """

    symmetric: Tensor

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
        lead = () if groups is None else (groups,)
        self.has_bias = has_bias
        eye = torch.eye(size, dtype=dtype, device=device).expand(*lead, size, size)
        self.register_buffer("symmetric", eye.clone())

    @torch.no_grad()
    def decompose_(self, damped: Tensor) -> bool:
        """Become the root of `damped` `[*, D, D]`; return False where it is not definite."""
        eigenvalues, eigenvectors = torch.linalg.eigh(damped.double())
        root = (eigenvectors * eigenvalues.rsqrt()[..., None, :]) @ eigenvectors.mT
        if not bool(root.isfinite().all()):
            return False
        self.symmetric = root.to(damped.dtype)
        return True

    def matrix(self) -> Tensor:
        """Return `R` `[*, D, D]`, the bias last."""
        return self.symmetric.clone()

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` for `W' [*, O, K]`, `b' [*, O]`."""
        return _split(_join(weight, bias) @ self.symmetric, bias)

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` for `W [*, O, K]`, `b [*, O]`."""
        joined = _join(weight, bias)
        return _split(torch.linalg.solve(self.symmetric, joined, left=False), bias)

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g R^T` that `w'` has where `w` has `g`."""
        return self.fold(weight, bias)

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g' R^-T` that `w` has where `w'` has `g'`."""
        return self.unfold(weight, bias)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W' (R x~)` for rows `[N, K]`: the activation side."""
        if bias is None:
            return F.linear(F.linear(rows, self.symmetric), weight)
        rotated = F.linear(rows, self.symmetric[:, :-1], self.symmetric[:, -1])
        return F.linear(rotated[:, :-1], weight) + rotated[:, -1:] * bias


Root = CholeskyRoot | SymmetricRoot | DiagonalRoot
FULL_ROOTS: dict[str, type[CholeskyRoot] | type[SymmetricRoot]] = {
    "cholesky": CholeskyRoot,
    "symmetric": SymmetricRoot,
}


def root_class(kind: str, root: str) -> type[Root]:
    """Return the class of the root of a factor of this kind, `root` being the configured one."""
    return DiagonalRoot if kind == "diagonal" else FULL_ROOTS[root]


@torch.no_grad()
def decompose_all_(roots: Sequence[Root], damped: Sequence[Tensor]) -> list[bool]:
    """Become the roots of matrices of one shape, in one call where the kind of root allows it.

    Args:
        roots: Of one class, shape, dtype and device.
        damped: A damped factor for each.

    Returns:
        For each, whether its matrix was definite; where not, the root stays as it was.
    """
    first = roots[0]
    if not isinstance(first, CholeskyRoot):
        others = cast(Sequence[SymmetricRoot | DiagonalRoot], roots)
        return [root.decompose_(matrix) for root, matrix in zip(others, damped, strict=True)]
    batch = damped[0][None] if len(damped) == 1 else torch.stack([*damped])
    inverses, info = sngd_kernels.cholesky_inverse_ex(batch, bias=first.has_bias)
    definite = [bool(good) for good in (info == 0).reshape(len(roots), -1).all(1)]
    for root, inverse, good in zip(roots, inverses, definite, strict=True):
        if good and isinstance(root, CholeskyRoot):
            root.take_(inverse)
    return definite


def copy_root_(root: Root, source: Root) -> None:
    """Write the buffers of `source` into those of `root`, in place and in their dtype."""
    for name, buffer in root.named_buffers():
        buffer.copy_(source.get_buffer(name))


def _join(weight: Tensor, bias: Tensor | None) -> Tensor:
    return weight if bias is None else torch.cat([weight, bias[..., None]], -1)


def _split(joined: Tensor, bias: Tensor | None) -> Pair:
    return (joined, None) if bias is None else (joined[..., :-1], joined[..., -1])


def _times_vector(matrix: Tensor, vector: Tensor) -> Tensor:
    if vector.shape[-1] == 1:
        return (matrix * vector[..., None, :]).squeeze(-1)
    return (matrix @ vector[..., None]).squeeze(-1)
