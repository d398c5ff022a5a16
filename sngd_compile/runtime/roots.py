"""Roots `R` of the inverse of a damped factor, `R^T R = G^-1`, and the four maps they give.

Legend: O outputs, K weights of one output, D = K + 1 with a bias (last), K without.
All tensors may have a leading groups axis. `w = w' R` with `w = [W b]`, `w' = [W' b']`:

    fold            w  = w' R           unfold            w' = w R^-1
    to_prime        g' = g R^T          from_prime        g  = g' R^-T        (gradients)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sngd_compile.runtime.diagonal import DiagonalRoot, Pair
from sngd_compile.runtime.triangular import (
    multiply,
    multiply_transposed,
    solve,
    solve_transposed,
    whiten,
)


class CholeskyRoot(nn.Module):
    """The root `R = L^-1` of a Cholesky factorisation that takes the bias first.

    With `x~ = (x, 1)`, mean `m = E[x] / g^2` and `g^2 = E[1] + damping` the Schur complement of the
    bias is a damped, centred covariance `C C^T`, and `R x~ = (C^-1 (x - m), 1 / g)`: the local
    Fisher layer centres and whitens. `C` is triangular, so applying `R` is one triangular solve,
    half of a product, and `R` is never formed.

    Args:
        size: D, weights of one output, bias included.
        has_bias: Whether the last coordinate is the bias.
        groups: Leading axis; None for none.
        dtype: float32 or float64.
        device: Where the buffers live.

    Source: arXiv 2412.07441 (the local Fisher layer); the bias-first order is derived in
    docs/method.md. Law 7 tests `R (G + damping) R^T = I`.
    """

    cholesky: Tensor
    centre: Tensor
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
        self.register_buffer("cholesky", eye.clone())
        self.register_buffer("centre", torch.zeros(*lead, width, dtype=dtype, device=device))
        # One axis more than it has groups: of a tensor without axes Dynamo traces the number.
        self.register_buffer("gain", torch.ones(*lead, 1, dtype=dtype, device=device))
        self.register_buffer("shift", torch.zeros(*lead, width, dtype=dtype, device=device))

    @torch.no_grad()
    def decompose_(self, damped: Tensor) -> bool:
        """Become the root of `damped` `[*, D, D]`; return False where it is not definite."""
        gain, centre, schur = None, None, damped
        if self.has_bias:
            gain = damped[..., -1, -1:].rsqrt()
            cross = damped[..., :-1, -1]
            centre = cross * gain.square()
            schur = torch.addcmul(
                damped[..., :-1, :-1], centre[..., None], cross[..., None, :], value=-1.0
            )
        upper, info = torch.linalg.cholesky_ex(schur, upper=True)
        cholesky = upper.mT  # row-major, so that copying it into the buffer is cheap
        pivots = cholesky.diagonal(dim1=-2, dim2=-1)
        if bool((info != 0).any()) or not bool(pivots.isfinite().all()):
            return False
        self.cholesky = cholesky
        if gain is not None and centre is not None:
            self.gain, self.centre = gain, centre
            self.shift = solve_transposed(cholesky, centre[..., None, :]).squeeze(-2)
        return True

    def matrix(self) -> Tensor:
        """Return `R` `[*, D, D]`, the bias last."""
        width = self.cholesky.shape[-1]
        eye = torch.eye(width, dtype=self.cholesky.dtype, device=self.cholesky.device)
        inverse: Tensor = torch.linalg.solve_triangular(self.cholesky, eye, upper=False)
        if not self.has_bias:
            return inverse
        root = F.pad(inverse, (0, 1, 0, 1))
        root[..., :-1, -1] = -(inverse @ self.centre[..., None]).squeeze(-1)
        root[..., -1, -1:] = self.gain
        return root

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` for `W' [*, O, K]`, `b' [*, O]`."""
        folded = solve(self.cholesky, weight)
        if bias is None:
            return folded, None
        return folded, bias * self.gain - _times_vector(folded, self.centre)

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` for `W [*, O, K]`, `b [*, O]`."""
        unfolded = multiply(self.cholesky, weight)
        if bias is None:
            return unfolded, None
        return unfolded, (bias + _times_vector(weight, self.centre)) / self.gain

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g R^T` that `w'` has where `w` has `g`."""
        if bias is not None:
            weight = weight - bias[..., None] * self.centre[..., None, :]
            bias = bias * self.gain
        return solve_transposed(self.cholesky, weight), bias

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g' R^-T` that `w` has where `w'` has `g'`."""
        weight = multiply_transposed(self.cholesky, weight)
        if bias is not None:
            bias = bias / self.gain
            weight = weight + bias[..., None] * self.centre[..., None, :]
        return weight, bias

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W' (R x~)` for rows `[N, K]`: the activation side."""
        if bias is None:
            return F.linear(whiten(rows, self.cholesky, None), weight)
        return F.linear(whiten(rows, self.cholesky, self.shift), weight, bias * self.gain)


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
