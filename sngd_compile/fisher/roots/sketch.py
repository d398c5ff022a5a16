"""The root of a factor of which a sketch is known: two skinny products, and nothing of D x D.

It has no name in `Config.root`: a sketch has this root, whatever is configured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sngd_kernels
from sngd_compile.fisher.roots.base import Decomposition, FactorRoot, Pair, RootShape

SCALARS = 3
"""Rows of a damped sketch behind the D rows of its images: see `SketchRoot.decompose`."""


class SketchRoot(FactorRoot):
    """The root `R = s (I - B K B^T)`, `R^-1 = (I + B M B^T) / s`, `B` `[D, l]`.

    Args:
        shape: Of the factor; `rank` is l.

    Attributes:
        basis: B, `[*, D, l]`, the bias last.
        middle: K, `[*, l, l]`, not symmetric.
        inverse_middle: M, `[*, l, l]`.
        tail: s, `[*, 1]`.

    Source: docs/method.md, sketches. Tested by tests/fisher/test_sketch.py.
    """

    basis: Tensor
    middle: Tensor
    inverse_middle: Tensor
    tail: Tensor

    def __init__(self, shape: RootShape) -> None:
        """Start as the identity."""
        super().__init__(shape)
        columns = min(shape.rank, shape.size)
        # With B = 0 and s = 1 it is the identity, whatever K and M are.
        self.register_buffer("basis", shape.full(0.0, shape.size, columns))
        self.register_buffer("middle", shape.full(0.0, columns, columns))
        self.register_buffer("inverse_middle", shape.full(0.0, columns, columns))
        self.register_buffer("tail", shape.full(1.0, 1))

    @classmethod
    def decompose(cls, damped: Tensor, roots: Sequence[Any]) -> Decomposition:
        """Find the roots, in float64 whatever the dtype is.

        Args:
            damped: `[B, ..., D + 3, l]`: the D rows of `G Omega`, then three whose first entries
                are the trace of G, the damping and the shift that stands for rounding.
            roots: Which will take them.
        """
        images, scalars = damped[..., :-SCALARS, :], damped[..., -SCALARS:, 0].double()
        size, columns = images.shape[-2:]
        omega = sngd_kernels.sketch_basis(size, columns, torch.float64, damped.device)
        found = sngd_kernels.sketch_root_ex(images, omega, *scalars.unbind(-1))
        parts = (found.basis, found.middle, found.inverse_middle, found.tail[..., None])
        return Decomposition(tuple(part.to(damped.dtype) for part in parts), found.info)

    def take_(self, *parts: Tensor) -> None:
        """Become the root of this basis, these middles and this tail."""
        self.basis, self.middle, self.inverse_middle, self.tail = parts

    def matrix(self) -> Tensor:
        """Return `R` `[*, D, D]`, the bias last: for inspection, no step needs it."""
        size = self.basis.shape[-2]
        identity = torch.eye(size, dtype=self.basis.dtype, device=self.basis.device)
        rows, tail = identity.expand(*self.basis.shape[:-2], -1, -1), self.tail[..., None]
        return rows * tail - (self.basis * tail) @ self.middle @ self.basis.mT

    def squared_norm(self) -> Tensor:
        """Return `|R|^2 = s^2 (D - l + trace (I + B^T B)^-1)`, `[*]`, float64."""
        # The default would write R out, and no layer with a sketch has memory for D x D.
        basis = self.basis.double()
        size, columns = basis.shape[-2:]
        identity = torch.eye(columns, dtype=basis.dtype, device=basis.device)
        lower = torch.linalg.cholesky(identity + basis.mT @ basis)
        inverse = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
        rest: Tensor = size - columns + inverse.square().sum((-2, -1))
        return self.tail[..., 0].double().square() * rest

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` for `W' [*, O, K]`, `b' [*, O]`."""
        return self._changed(weight, bias, self.tail, self.middle, -1)

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` for `W [*, O, K]`, `b [*, O]`."""
        return self._changed(weight, bias, self.tail.reciprocal(), self.inverse_middle, 1)

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g R^T` that `w'` has where `w` has `g`."""
        return self._changed(weight, bias, self.tail, self.middle.mT, -1)

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g' R^-T` that `w` has where `w'` has `g'`."""
        return self._changed(weight, bias, self.tail.reciprocal(), self.inverse_middle.mT, 1)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W' (R x~)` for rows `[N, K]`: the activation side."""
        ones = None if bias is None else rows.new_ones(rows.shape[0])
        rotated, last = self.to_prime(rows, ones)
        output = F.linear(rotated, weight)
        return output if last is None or bias is None else output + last[:, None] * bias

    def _changed(
        self, weight: Tensor, bias: Tensor | None, tail: Tensor, middle: Tensor, sign: int
    ) -> Pair:
        """Return `t (w + sign w B middle B^T)`; the last row of B is the bias's."""
        basis, middle = self.basis, middle * tail[..., None]
        if bias is not None and weight.dim() == 2:
            # Without a groups axis every step is one call, which is what small weights take.
            basis, last = basis[:-1], basis[-1]
            inner = torch.addr(weight @ basis, bias, last) @ middle
            changed = torch.addmm(weight * tail, inner, basis.mT, alpha=sign)
            return changed, torch.addmv(bias * tail, inner, last, alpha=sign)
        tail = tail[..., None]
        if bias is None:
            inner = weight @ basis @ middle
            return _plus(weight * tail, inner, basis.mT, sign), None
        basis, last = basis[..., :-1, :], basis[..., -1, :, None]
        inner = weight @ basis + bias[..., None] * last.mT
        inner = inner @ middle
        changed_bias = bias * tail[..., 0] + sign * (inner @ last)[..., 0]
        return _plus(weight * tail, inner, basis.mT, sign), changed_bias


def _plus(base: Tensor, left: Tensor, right: Tensor, sign: int) -> Tensor:
    """Return `base + sign left right` in one call, with or without a groups axis."""
    added = torch.addmm if base.dim() == 2 else torch.baddbmm
    total: Tensor = added(base, left, right, alpha=sign)
    return total
