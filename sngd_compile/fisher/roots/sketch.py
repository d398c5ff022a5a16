"""The root of a factor of which a sketch is known: two skinny products, and nothing of D x D.

A sketch has this root, whatever is configured; `Config.root` asks for a sketch by its name,
"nystrom".
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

import sngd_kernels
from sngd_compile.fisher.roots.base import Decomposition, FactorRoot, Pair, Root, RootShape
from sngd_compile.fisher.transforms import are_transforms_active
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
        self.known: _Known | None = None

    @property
    def columns(self) -> int:
        """Columns of B that need to be multiplied."""
        return self._parts().basis.shape[-1]

    def _parts(self) -> _Parts:
        """Return what is multiplied: of equal numbers the same, to the bit of the product."""
        numbers = tuple(self.numbers())
        is_compiling = torch.compiler.is_compiling()
        if not is_compiling and self.known is not None and self.known.is_of(numbers):
            return self.known.parts
        # Tensors of a transform of functions, or fake ones, have no numbers to look at.
        if is_compiling or type(numbers[0]) is not Tensor or are_transforms_active():
            return _Parts.of(numbers, self.has_bias, numbers[0].shape[-1])
        self.note_columns(_used_columns(numbers[0]))
        if self.known is None:
            return _Parts.of(numbers, self.has_bias, numbers[0].shape[-1], _number(numbers[-1]))
        return self.known.parts

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy it with what is known of its columns: numbers of copies are equal to the bit."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy({**self.__dict__, "known": None}, memo))
        copied.note_columns(self.columns)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of files what is found again."""
        return {**self.__dict__, "known": None}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Take a checkpoint, and leave out the zeros in it."""
        super()._load_from_state_dict(*args, **kwargs)
        self.note_columns(_used_columns(self.basis))

    def note_columns(self, columns: int) -> None:
        """Remember that the columns behind these are zeros, until somebody writes to the root."""
        numbers = tuple(self.numbers())
        is_counted = not any(tensor.is_inference() for tensor in numbers)  # those count no versions
        self.known = _Known.of(numbers, self.has_bias, columns) if is_counted else None

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

    def scale_(self, factor: float) -> None:
        """Become `factor R`: the basis stays."""
        columns = self.columns
        self.middle.mul_(factor)
        self.inverse_middle.div_(factor)
        self.tail.mul_(factor)
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

    def spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the squares of the singular values of B `[*, l]`, s and B's columns `[*]`.

        The metric `(I + B B^T) / s^2` has the eigenvalues `(1 + square) / s^2`, and `1 / s^2`
        outside of the columns. In float64; columns of zeros do not count.
        """
        basis = self.basis.double()
        used = (basis != 0).any(-2).sum(-1)
        return torch.linalg.svdvals(basis).square(), self.tail[..., 0].double(), used

    def singular_range(self) -> tuple[Tensor, Tensor]:
        """Return `s / sqrt(1 + square)` of the largest square, and of the least."""
        squares, tail, _ = self.spectrum()
        size, columns = self.basis.shape[-2:]
        least = squares[..., -1] if columns == size else torch.zeros_like(tail)
        return tail * (1.0 + squares[..., 0]).rsqrt(), tail * (1.0 + least).rsqrt()

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` for `W' [*, O, K]`, `b' [*, O]`."""
        return self._parts().changed(weight, bias, False, False)

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` for `W [*, O, K]`, `b [*, O]`."""
        return self._parts().changed(weight, bias, True, False)

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g R^T` that `w'` has where `w` has `g`."""
        return self._parts().changed(weight, bias, False, True)

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g' R^-T` that `w` has where `w'` has `g'`."""
        return self._parts().changed(weight, bias, True, True)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W' (R x~)` for rows `[N, K]`: the activation side."""
        return self._parts().linear(rows, weight, bias)


@dataclass(frozen=True)
class _Parts:
    """What is multiplied: views of the buffers, without columns of zeros.

    Args:
        basis: Rows of B, `[*, K, l]`.
        last: The row of B that is the bias's, `[*, l]`; None without a bias.
        middles: K and M.
        tail: s, `[*, 1]`.
        number: s, where it is known: a product takes it for nothing.
    """

    basis: Tensor
    last: Tensor | None
    middles: tuple[Tensor, Tensor]
    tail: Tensor
    number: float | None

    @classmethod
    def of(
        cls,
        numbers: Sequence[Tensor],
        has_bias: bool,
        columns: int,
        number: float | None = None,
    ) -> Self:
        """Take the buffers of a root apart."""
        basis, *middles, tail = numbers
        if columns < basis.shape[-1]:
            basis = basis[..., :columns]
            middles = [middle[..., :columns, :columns] for middle in middles]
        last = basis[..., -1, :] if has_bias else None
        rows = basis[..., :-1, :] if has_bias else basis
        return cls(rows, last, (middles[0], middles[1]), tail, number)

    def changed(self, weight: Tensor, bias: Tensor | None, inverse: bool, transposed: bool) -> Pair:
        """Return `w A` for A one of R and R^-1, or for the transpose of that."""
        middle, sign = self.middles[inverse], 1 if inverse else -1
        middle = middle.mT if transposed else middle
        if weight.dim() == 2:
            return self._changed_matrix(weight, bias, middle, inverse)
        inner = weight @ self.basis
        scale = self.tail.reciprocal() if inverse else self.tail
        if bias is None or self.last is None:
            inner, changed_bias = inner @ middle, None
        else:
            inner = (inner + bias[..., None] * self.last[..., None, :]) @ middle
            changed_bias = bias * scale + sign * (inner @ self.last[..., None])[..., 0]
        scaled = weight * scale[..., None]
        return torch.baddbmm(scaled, inner, self.basis.mT, alpha=sign), changed_bias

    def _changed_matrix(
        self, weight: Tensor, bias: Tensor | None, middle: Tensor, inverse: bool
    ) -> Pair:
        """Return `w A` without a groups axis: every step is one call, as small weights want it."""
        sign, factor = 1 if inverse else -1, 1.0
        base, base_of_bias = weight, bias
        if self.number is not None:
            factor = 1.0 / self.number if inverse else self.number
        else:
            scale = self.tail.reciprocal() if inverse else self.tail
            base, base_of_bias = weight * scale, None if bias is None else bias * scale
        inner = torch.mm(weight, self.basis)
        if bias is None or base_of_bias is None or self.last is None:
            inner = torch.mm(inner, middle)
            return torch.addmm(base, inner, self.basis.mT, beta=factor, alpha=sign), None
        inner = torch.mm(torch.addr(inner, bias, self.last), middle)
        changed = torch.addmm(base, inner, self.basis.mT, beta=factor, alpha=sign)
        return changed, torch.addmv(base_of_bias, inner, self.last, beta=factor, alpha=sign)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W' (R x~)`: the rows take the map of gradients, each with a bias of 1."""
        if bias is None or self.last is None:
            return F.linear(self.changed(rows, None, False, True)[0], weight)
        inner = torch.addmm(self.last, rows, self.basis) @ self.middles[0].mT
        base, factor = (rows * self.tail, 1.0) if self.number is None else (rows, self.number)
        rotated = torch.addmm(base, inner, self.basis.mT, beta=factor, alpha=-1)
        ones = self.tail - torch.mv(inner, self.last)  # what became of them
        return torch.addr(F.linear(rotated, weight), ones, bias)


@dataclass(frozen=True)
class _Known:
    """What was found out about buffers, and which versions of them that holds for."""

    buffers: tuple[Tensor, ...]
    versions: list[int]
    parts: _Parts

    @classmethod
    def of(cls, numbers: tuple[Tensor, ...], has_bias: bool, columns: int) -> Self:
        """Note how many columns are used; and the tail, where nothing has to be waited for."""
        parts = _Parts.of(numbers, has_bias, columns, _number(numbers[-1]))
        return cls(numbers, [version_of(tensor) for tensor in numbers], parts)

    def is_of(self, numbers: Sequence[Tensor]) -> bool:
        """Say whether these are the buffers, and nobody has written to them since."""
        is_same = all(map(is_, self.buffers, numbers))
        return is_same and [*map(version_of, numbers)] == self.versions


def _number(tail: Tensor) -> float | None:
    """Return s of one group where nothing has to be waited for."""
    return float(tail) if tail.device.type == "cpu" and tail.dim() == 1 else None


def _used_columns(basis: Tensor) -> int:
    """Return how many columns are left without those of zeros at the end; all of a basis of zeros.

    On a device that has to be waited for, and on `meta`, all too.
    """
    columns = basis.shape[-1]
    if basis.device.type != "cpu":
        return columns
    used = basis.reshape(-1, columns).any(0).nonzero()
    return int(used.max()) + 1 if len(used) else columns
