"""A sketch of `E[x~ x~^T]`: its product with a few columns, and its trace, for wide layers.

A factor is `[*, D + 1, l]`: `Y = G Omega` in its first D rows, `Omega` `[D, l]` the same
orthonormal columns for every layer of this D and l, and in its last row the trace of G, first, and
zeros. Each entry is linear in the rows, so averages, sums over processes and checkpoints need not
know of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

import sngd_kernels
from sngd_compile.config import RANK, Config
from sngd_compile.fisher.kinds.base import Choice, Damped, FisherKind, Probe, Uses, rank_of
from sngd_compile.fisher.output_side import OutputSide
from sngd_compile.fisher.roots.base import Root, RootShape
from sngd_compile.fisher.roots.sketch import SketchRoot
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.fisher.statistics import Statistics
from sngd_compile.registry import register_kind
from sngd_kernels.moments.sketch import TRACE

SHIFT = 10.0
"""Rounding of a sketch that is taken for possible, in units of its dtype's and of its norm."""

FEWEST_COLUMNS = 4
"""Columns of a root that no budget of a step takes away."""

_ROOT, _ROOTLESS = 4, 3
"""Multiply-adds of a column of the root, and of a row, for each element of a weight in a step.

A root takes two skinny products each way; a row the product, its gradient and the weight's.
"""


@register_kind
class Sketch(FisherKind):
    """What wide layers have by default: nothing of it, nor of its root, is `[D, D]`.

    The metric is the Nystroem approximation of G, and in every direction beside it the mean of
    what that leaves, with the damping. With l = D it is that of `shared`.

    Source: docs/method.md, sketches. Tested by tests/fisher/test_sketch.py.
    """

    name = "sketch"
    factor_words = "a sketch"

    def choose(self, spec: FisherSpec, uses: Uses) -> Choice | str:
        """Take as many columns as are configured."""
        # Without a rank "shared" stays exact; who asks for a sketch by name has one all the same.
        return Choice(sketched(spec, uses.config.rank or RANK))

    def factor_text(self, spec: FisherSpec) -> str:
        """Return D and l, for groups with their number."""
        return f"{super().factor_text(spec)} of rank {_columns(spec)}"

    def factor_shape(self, spec: FisherSpec) -> tuple[int, ...]:
        """Return `[*, D + 1, l]`."""
        return (*spec.lead, spec.size + 1, _columns(spec))

    def first_root(self, spec: FisherSpec, dtype: torch.dtype, device: torch.device) -> Root:
        """Return the root of a sketch, whatever kind of root is configured."""
        groups, columns = spec.layout.groups, _columns(spec)
        return SketchRoot(RootShape(spec.size, spec.has_bias, groups, dtype, device, columns))

    def within_budget(
        self, spec: FisherSpec, factor: Tensor, rows: float, config: Config
    ) -> Tensor:
        """Return the columns that the budget of a step allows, halved until they fit."""
        # Fewer columns of the statistics are a sketch of their own, with as many columns of Omega.
        # In halves, since a budget that follows the rows would give roots of ever other ranks.
        columns = _columns(spec)
        most = config.step_budget * _ROOTLESS / _ROOT * _met(spec, rows)
        while columns > max(most, FEWEST_COLUMNS):
            columns = (columns + 1) // 2
        return factor[..., :columns]

    def traces(self, spec: FisherSpec, factor: Tensor) -> Tensor:
        """Read them."""
        return factor[TRACE].double()

    def effective_rank(self, spec: FisherSpec, factor: Tensor, root: Root) -> Tensor:
        """Return that of what stands for G: `N + rest I`, N the Nystroem approximation."""
        squares, unknown, columns = self._known(spec, factor, root)
        size, kept = spec.size, squares.shape[-1]
        # Columns that a root does without are directions like those outside of all columns.
        rest = unknown / (size - columns).clamp_min(1)
        values = squares + rest[..., None]
        trace = values.sum(-1) + (size - kept) * rest
        rank = rank_of(trace, values.square().sum(-1) + (size - kept) * rest.square())
        return torch.where(self.traces(spec, factor) > 0, rank, 0.0)

    def residual(self, spec: FisherSpec, factor: Tensor, root: Root) -> Tensor:
        """Return `(trace(G) - trace(N)) / trace(G)`; 0 for a factor of zeros."""
        squares, unknown, _ = self._known(spec, factor, root)
        trace = self.traces(spec, factor)
        return torch.where(trace > 0, unknown / (squares.sum(-1) + unknown), 0.0)

    def _known(self, spec: FisherSpec, factor: Tensor, root: Root) -> tuple[Tensor, Tensor, Tensor]:
        """Return the eigenvalues of N, the trace of what it leaves, and how many columns it has.

        In units of rho, see docs/method.md; nothing of a tail is found as a difference to the
        damping, which may be far larger.
        """
        (sketched,) = root.sides
        assert isinstance(sketched, SketchRoot)
        squares, tail, columns = sketched.spectrum()
        trace = self.traces(spec, factor) * spec.scale * tail.square()
        return squares, (trace - squares.sum(-1)).clamp_min(0.0), columns

    def damped(
        self, spec: FisherSpec, factor: Tensor, outputs: OutputSide | None, config: Config
    ) -> tuple[Damped, ...]:
        """Return `[*, D + 3, l]`, what `SketchRoot.decompose` takes, and the damping in it."""
        strength = self.strength(spec, factor, config)
        if strength is None:
            return ()
        damping, dtype = strength
        # What the statistics lost when they were summed, a wider dtype does not bring back.
        rounding = SHIFT * torch.finfo(factor.dtype).eps
        packed = F.pad(torch.mul(factor.to(dtype), spec.scale), (0, 0, 0, 2))
        norm = torch.linalg.matrix_norm(packed[..., : spec.size, :])
        # The damping keeps the shift of a group of zeros above 0, as `sketch_root_ex` asks.
        packed[..., -1, 0] = rounding * (norm + damping)
        packed[..., -2, 0] = damping
        return ((packed, damping),)

    def largest_eigenvalue(self, factor: Tensor) -> Tensor:
        """Bound it by the trace."""
        return factor[TRACE]

    def large_eigenvalue(self, spec: FisherSpec, factor: Tensor) -> Tensor:
        """Return the largest eigenvalue of `Omega^T G Omega`, `[*]`, which none of G is below."""
        omega = self._omega(spec, factor)
        inner = omega.mT @ factor[..., :-1, :]
        largest: Tensor = torch.linalg.eigvalsh((inner + inner.mT) / 2).amax(-1)
        return largest

    def resolved(self, spec: FisherSpec) -> int:
        """Return l."""
        return _columns(spec)

    def probe(self, spec: FisherSpec, factor: Tensor, count: int, with_bias: bool) -> Probe | None:
        """Return columns of the sketch: what G makes of columns of Omega."""
        if spec.has_bias and not with_bias:
            return None
        omega = self._omega(spec, factor)[:, :count].double()
        return Probe(omega, factor[..., :-1, :count].double(), torch.ones_like(omega))

    def without_bias(self, spec: FisherSpec, moment: Tensor) -> Tensor | None:
        """Sketch the Nystroem approximation without its last row and column.

        A sketch of fewer rows has other columns, by which the rows that were seen cannot be
        multiplied any more. This one serves until others are seen.
        """
        less = self.with_bias(spec, joined=False)
        images, trace = moment[..., :-1, :].double(), moment[TRACE].double()
        tiny = torch.finfo(torch.float32).tiny
        shift = SHIFT * torch.finfo(moment.dtype).eps * torch.linalg.matrix_norm(images) + tiny
        damping = trace.clamp_min(tiny)
        # For its half of the approximation alone: the damping only scales that.
        found = sngd_kernels.sketch_root_ex(
            images, self._omega(spec, images), trace, damping, shift
        )
        if bool((found.info != 0).any()):
            return None
        half = found.basis / found.tail[..., None, None]
        kept = half[..., :-1, :]
        sketched_again = moment.new_zeros((*spec.lead, less.size + 1, _columns(less)))
        sketched_again[..., :-1, :] = kept @ (kept.mT @ self._omega(less, images))
        sketched_again[TRACE] = (trace - half[..., -1, :].square().sum(-1)).clamp_min(0)
        return sketched_again

    def add_rows(
        self,
        spec: FisherSpec,
        statistics: Statistics,
        samples: Sequence[Tensor],
        outputs: Tensor | None,
        geometry: Sequence[int],
        sum: Tensor,
    ) -> None:
        """Add the sketch of the rows' second moment."""
        statistics.sketch(samples, geometry, spec.has_bias, self._omega(spec, sum), sum)

    def add_to_diagonal(self, spec: FisherSpec, sum: Tensor, value: Tensor) -> None:
        """Add the sketch of a multiple of the identity."""
        sum[..., :-1, :].add_(self._omega(spec, sum) * value)
        sum[TRACE].add_(value * spec.size)

    def observation_work(self, spec: FisherSpec, rows: int) -> int:
        """Count the product with the columns, and the rows' with that."""
        return 2 * rows * spec.size * _columns(spec)

    def step_work(self, spec: FisherSpec) -> int:
        """Count two skinny products, each way."""
        return _ROOT * prod(spec.layout.matrix) * _columns(spec)

    def refresh_work(self, spec: FisherSpec) -> int:
        """Count the root, then w', g' and momentum, there and back."""
        return self.root_work(spec) + 12 * prod(spec.layout.matrix) * _columns(spec)

    def root_work(self, spec: FisherSpec) -> int:
        """Count the products of the columns, and what is `[l, l]`."""
        columns = _columns(spec)
        return (spec.layout.groups or 1) * (3 * spec.size * columns**2 + columns**3)

    @staticmethod
    def _omega(spec: FisherSpec, like: Tensor) -> Tensor:
        return sngd_kernels.sketch_basis(spec.size, _columns(spec), like.dtype, like.device)


def _met(spec: FisherSpec, rows: float) -> float:
    """Return how many multiply-adds each element of a weight takes part in for one of a root's."""
    # A product with a matrix may apply the root to its rows instead of the weight.
    return max(rows, spec.layout.outputs) if len(spec.layout.view) == 2 else rows


def sketched(spec: FisherSpec, columns: int) -> FisherSpec:
    """Return the record of a sketch with at most so many columns."""
    return replace(spec, kind=Sketch.name, rank=min(columns, spec.size))


def _columns(spec: FisherSpec) -> int:
    """Return l; a use without the bias, which a record may drop, has one row less."""
    return min(spec.rank, spec.size)
