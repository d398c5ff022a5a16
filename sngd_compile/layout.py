"""How a parameter of any shape is laid out as matrices whose rows are the weights of one output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Self

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """View a parameter as `[O, K]` or `[G, O, K]`: outputs O, weights of one output K, groups G.

    Every group has a local Fisher of its own. The same three steps backwards give the parameter.

    Args:
        view: Sizes with which the parameter is viewed first.
        order: Permutation of those axes.
        matrix: Sizes in the end, `(O, K)` or `(G, O, K)`.

    Attributes: found once, since a small weight is folded in the time that it takes to find them.
        keeps_order: Whether the matrices are the elements of the parameter one after another.
        is_plain: Whether the parameter is such matrices already.
        is_one_matrix: Whether the elements of the parameter, one after another, are `[O, K]`.
    """

    view: tuple[int, ...]
    order: tuple[int, ...]
    matrix: tuple[int, ...]
    keeps_order: bool = field(init=False, repr=False, compare=False)
    is_plain: bool = field(init=False, repr=False, compare=False)
    is_one_matrix: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Find the attributes."""
        keeps_order = self.order == tuple(range(len(self.order)))
        object.__setattr__(self, "keeps_order", keeps_order)  # the record is frozen
        object.__setattr__(self, "is_plain", keeps_order and self.matrix == self.view)
        object.__setattr__(self, "is_one_matrix", keeps_order and len(self.matrix) == 2)

    @classmethod
    def plain(cls, shape: Sequence[int], groups: int | None = None) -> Self:
        """Lay `[O, ...]` out by `flatten(1)`; with groups, `O / G` outputs each."""
        outputs, width = shape[0], prod(shape[1:])
        matrix = (outputs, width) if groups is None else (groups, outputs // groups, width)
        return cls(tuple(shape), tuple(range(len(shape))), matrix)

    @classmethod
    def transposed(cls, shape: Sequence[int]) -> Self:
        """Lay `[K, O]` out as its transpose."""
        width, outputs = shape
        return cls((width, outputs), (1, 0), (outputs, width))

    @classmethod
    def stacked(cls, shape: Sequence[int]) -> Self:
        """Lay `[..., O, K]` out as one group for each leading index."""
        matrix = (prod(shape[:-2]), shape[-2], shape[-1])
        return cls(matrix, (0, 1, 2), matrix)

    @classmethod
    def stacked_transposed(cls, shape: Sequence[int]) -> Self:
        """Lay `[..., K, O]` out as one transposed group for each leading index."""
        groups, (width, outputs) = prod(shape[:-2]), shape[-2:]
        return cls((groups, width, outputs), (0, 2, 1), (groups, outputs, width))

    @classmethod
    def channelwise(cls, shape: Sequence[int]) -> Self:
        """Lay one factor per channel out as a group of one output with one weight."""
        return cls(tuple(shape), tuple(range(len(shape))), (prod(shape), 1, 1))

    @property
    def is_sound(self) -> bool:
        """Whether the steps fit together: the axes are those of the view, the elements all used."""
        axes = sorted(self.order) == list(range(len(self.view)))
        return axes and len(self.matrix) in (2, 3) and prod(self.view) == prod(self.matrix)

    @property
    def groups(self) -> int | None:
        """G, or None for a single matrix without that axis."""
        return self.matrix[0] if len(self.matrix) == 3 else None

    @property
    def outputs(self) -> int:
        """O, outputs of one group."""
        return self.matrix[-2]

    @property
    def all_outputs(self) -> int:
        """Outputs of all groups together."""
        return prod(self.matrix[:-1])

    @property
    def width(self) -> int:
        """K, weights of one output."""
        return self.matrix[-1]

    @property
    def is_transposed(self) -> bool:
        """Whether a parameter `[..., K, O]` is laid out as its transpose."""
        return self.order in ((1, 0), (0, 2, 1))

    def matrices(self, parameter: Tensor) -> Tensor:
        """Return the parameter as `[*, O, K]`, a view where that is possible."""
        if self.keeps_order:
            # Asked at every fold: one view, or none, in the place of three calls.
            same = self.is_plain and len(parameter.shape) == 2
            return parameter if same else parameter.reshape(self.matrix)
        if self._is_transpose(parameter.shape):
            return parameter.mT
        return parameter.reshape(self.view).permute(self.order).reshape(self.matrix)

    def parameter(self, matrices: Tensor, shape: Sequence[int]) -> Tensor:
        """Return `[*, O, K]` in the shape of the parameter."""
        if self.keeps_order:
            same = self.is_plain and len(shape) == 2
            return matrices if same else matrices.reshape(tuple(shape))
        if self._is_transpose(shape):
            return matrices.mT
        sizes = [self.view[axis] for axis in self.order]
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return matrices.reshape(sizes).permute(inverse).reshape(tuple(shape))

    def _is_transpose(self, shape: Sequence[int]) -> bool:
        """Say whether the matrices are those of a parameter of this shape, transposed."""
        has_as_many_axes = len(self.matrix) == len(self.view)
        return self.is_transposed and has_as_many_axes and self.view == tuple(shape)

    def vectors(self, bias: Tensor) -> Tensor:
        """Return a bias, one number per output of every group, as `[*, O]`."""
        return bias.reshape(self.matrix[:-1])

    def orders_like(self, other: Layout) -> bool:
        """Say whether two layouts take the elements in the same order, if their sizes agree."""
        return self.order == other.order or (self.keeps_order and other.keeps_order)

    def of_transpose(self) -> Self:
        """Return the layout of `w` that reads it as this one reads `w^T`, its last axes swapped."""
        *lead, rows, columns = self.view
        last = len(self.view) - 1
        other = {last: last - 1, last - 1: last}
        order = tuple(other.get(axis, axis) for axis in self.order)
        return type(self)((*lead, columns, rows), order, self.matrix)

    def swapped_width(self, other: Layout) -> int | None:
        """Compare what a call reads, `self`, with how the weight is laid out, `other`.

        Returns:
            0 where they agree; the width of the call's rows where one is the other's transpose;
            None where they do not fit.
        """
        # Equal sizes are not enough: a convolution's weight with as many outputs as inputs has the
        # same matrix when a transposed convolution reads it, and other rows.
        if self.matrix == other.matrix and self.orders_like(other):
            return 0
        is_transpose = (
            self.matrix == other.matrix[::-1] and self.is_transposed != other.is_transposed
        )
        return self.width if is_transpose and self.groups is None else None
