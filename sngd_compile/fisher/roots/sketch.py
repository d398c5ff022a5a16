"""The root of a factor of which a sketch is known: two skinny products, and nothing of D x D.

A sketch has this root, whatever is configured; `Config.root` asks for a sketch by its name,
"nystrom".
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

import sngd_kernels
from sngd_compile.fisher.roots.base import Decomposition, FactorRoot, Pair, Root, RootShape
from sngd_compile.torch_private import version_of

SCALARS = 3
"""Rows of a damped sketch behind the D rows of its images: see `SketchRoot.decompose`."""


class SketchRoot(FactorRoot):
    """The root `R = s I - B K B^T`, `R^-1 = I / s + B M B^T`, `B` `[D, l]`.

    A root of fewer columns than l has zeros in the rest, so that every root of a layer, in a file
    or in a graph, has one shape; eager execution leaves the zeros out.

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
        self.known_columns: tuple[Tensor, int, int] | None = None

    @property
    def columns(self) -> int:
        """Columns of B that need to be multiplied; l, if others may have written to it."""
        if not torch.compiler.is_compiling() and self.known_columns is not None:
            basis, version, columns = self.known_columns
            if basis is self._buffers["basis"] and version == version_of(basis):
                return columns
            self.known_columns = None  # a basis that was moved elsewhere is not held here
        return self.basis.shape[-1]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy it with what is known of its columns: numbers of copies are equal to the bit."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy({**self.__dict__, "known_columns": None}, memo))
        copied.note_columns(self.columns)
        return copied

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Take a checkpoint, and leave out the zeros in it."""
        super()._load_from_state_dict(*args, **kwargs)
        if not self.basis.is_meta:
            used = self.basis.reshape(-1, self.basis.shape[-1]).any(0).nonzero()
            self.note_columns(int(used.max()) + 1 if len(used) else self.basis.shape[-1])

    def note_columns(self, columns: int) -> None:
        """Remember that the columns behind these are zeros, until somebody writes to B."""
        self.known_columns = None
        if not self.basis.is_inference():  # which counts no versions
            self.known_columns = (self.basis, version_of(self.basis), columns)

    @classmethod
    def decompose(cls, damped: Tensor, roots: Sequence[Any]) -> Decomposition:
        """Find the roots, in float64 whatever the dtype is.

        Args:
            damped: `[B, ..., D + 3, r]`, r at most l: the D rows of `G Omega`, then three whose
                first entries are the trace of G, the damping and the shift that stands for
                rounding.
            roots: Which will take them.
        """
        images, scalars = damped[..., :-SCALARS, :], damped[..., -SCALARS:, 0].double()
        size, columns = images.shape[-2:]
        omega = sngd_kernels.sketch_basis(size, columns, torch.float64, damped.device)
        found = sngd_kernels.sketch_root_ex(images, omega, *scalars.unbind(-1))
        tail = found.tail[..., None]
        middle, inverse = found.middle * tail[..., None], found.inverse_middle / tail[..., None]
        parts = (found.basis, middle, inverse, tail)
        return Decomposition(tuple(part.to(damped.dtype) for part in parts), found.info)

    def take_(self, *parts: Tensor) -> None:
        """Become the root of this basis, these middles and this tail."""
        basis, middle, inverse_middle, self.tail = parts
        columns = basis.shape[-1]
        rest = self.basis.shape[-1] - columns
        self.basis = F.pad(basis, (0, rest))
        self.middle, self.inverse_middle = (
            F.pad(part, (0, rest, 0, rest)) for part in (middle, inverse_middle)
        )
        self.note_columns(columns)

    def copied_from(self, source: Root) -> None:
        """Know as much of the columns as the root whose numbers were copied."""
        assert isinstance(source, SketchRoot)
        self.note_columns(source.columns)

    def matrix(self) -> Tensor:
        """Return `R` `[*, D, D]`, the bias last: for inspection, no step needs it."""
        size = self.basis.shape[-2]
        identity = torch.eye(size, dtype=self.basis.dtype, device=self.basis.device)
        rows, tail = identity.expand(*self.basis.shape[:-2], -1, -1), self.tail[..., None]
        return rows * tail - self.basis @ self.middle @ self.basis.mT

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
        """Return `t w + sign w B middle B^T`; the last row of B is the bias's."""
        basis, columns = self.basis, self.columns
        if columns < basis.shape[-1]:
            basis, middle = basis[..., :columns], middle[..., :columns, :columns]
        if bias is not None and weight.dim() == 2:
            # Without a groups axis every step is one call, which is what small weights take.
            basis, last = basis[:-1], basis[-1]
            inner = torch.addr(weight @ basis, bias, last) @ middle
            changed = torch.addmm(weight * tail, inner, basis.mT, alpha=sign)
            return changed, torch.addmv(bias * tail, inner, last, alpha=sign)
        if bias is None:
            inner = weight @ basis @ middle
            return _plus(weight * tail[..., None], inner, basis.mT, sign), None
        basis, last = basis[..., :-1, :], basis[..., -1, :, None]
        inner = weight @ basis + bias[..., None] * last.mT
        inner = inner @ middle
        changed_bias = bias * tail + sign * (inner @ last)[..., 0]
        return _plus(weight * tail[..., None], inner, basis.mT, sign), changed_bias


def _plus(base: Tensor, left: Tensor, right: Tensor, sign: int) -> Tensor:
    """Return `base + sign left right` in one call, with or without a groups axis."""
    added = torch.addmm if base.dim() == 2 else torch.baddbmm
    total: Tensor = added(base, left, right, alpha=sign)
    return total
