"""The diagonal of `E[x~ x~^T]`: D numbers, whose root costs next to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from sngd_compile.fisher.kinds.base import FisherKind, Probe
from sngd_compile.fisher.roots.base import Root, RootShape
from sngd_compile.fisher.roots.diagonal import DiagonalRoot
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.fisher.statistics import Statistics
from sngd_compile.registry import register_kind


@register_kind
class Diagonal(FisherKind):
    """Exact for embeddings, whose rows are indicators; elsewhere what is left of a large factor.

    Source: docs/method.md, local Fishers. Tested by tests/fisher/test_diagonal.py.
    """

    name = "diagonal"
    is_diagonal = True

    def factor_shape(self, spec: FisherSpec) -> tuple[int, ...]:
        """Return `[*, D]`."""
        return (*spec.lead, spec.size)

    def first_root(self, spec: FisherSpec, dtype: torch.dtype, device: torch.device) -> Root:
        """Return a diagonal, whatever kind of root is configured."""
        shape = RootShape(spec.size, spec.has_bias, spec.layout.groups, dtype, device)
        return DiagonalRoot(shape)

    def diagonal(self, part: Tensor) -> Tensor:
        """Return it as it is held."""
        return part

    def with_mirror(self, half: Tensor) -> Tensor:
        """Return twice a half."""
        return half + half

    def largest_eigenvalue(self, factor: Tensor) -> Tensor:
        """Return the largest number."""
        return factor.amax(-1)

    def metric(self, spec: FisherSpec, root: Root) -> Tensor:
        """Return `R^-2`, written out."""
        return root.matrix().square().reciprocal().diag_embed()

    def resolved(self, spec: FisherSpec) -> int:
        """Return 0: each number is a mean over rows, and one row gives one."""
        return 0

    def probe(self, spec: FisherSpec, factor: Tensor, count: int, with_bias: bool) -> Probe:
        """Return the largest numbers: of the vectors that are 1 there and 0 elsewhere."""
        size = spec.size if with_bias else spec.layout.width
        chosen = factor[..., :size].reshape(-1, size).amax(0).topk(min(count, size)).indices
        vectors = torch.zeros(spec.size, len(chosen), dtype=torch.float64, device=factor.device)
        vectors[chosen, range(len(chosen))] = 1.0
        return Probe(vectors, factor.double()[..., None] * vectors, vectors)

    def without_bias(self, spec: FisherSpec, moment: Tensor) -> Tensor:
        """Leave out the last number."""
        return moment[..., : spec.layout.width]

    def add_rows(
        self,
        spec: FisherSpec,
        statistics: Statistics,
        samples: Sequence[Tensor],
        outputs: Tensor | None,
        geometry: Sequence[int],
        sum: Tensor,
    ) -> None:
        """Add the squares of the rows."""
        statistics.diagonal(samples, geometry, spec.has_bias, sum)

    def observation_work(self, spec: FisherSpec, rows: int) -> int:
        """Count one square for each input."""
        return rows * spec.size

    def step_work(self, spec: FisherSpec) -> int:
        """Count one product for each weight, each way."""
        return 2 * prod(spec.layout.matrix)

    def refresh_work(self, spec: FisherSpec) -> int:
        """Count w', its gradient and its momentum, there and back."""
        return 6 * prod(spec.layout.matrix)

    def root_work(self, spec: FisherSpec) -> int:
        """Count a number for each weight of an output."""
        return (spec.layout.groups or 1) * spec.size
