"""What observation asks of a rule: how activations become rows, and their sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Statistics(Protocol):
    """What a rule knows about turning activations into a second moment."""

    @property
    def least_samples(self) -> int:
        """Fewest samples that stand for a batch."""
        ...

    @property
    def least_rows(self) -> int:
        """Fewest rows that stand for a batch, in as many samples as have them."""
        ...

    @property
    def takes_halves(self) -> bool:
        """Whether rows are entries of the samples, so that sums of halves are exact in float32."""
        ...

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return the activations with one sample per index of axis 0."""
        ...

    def rows_per_sample(self, samples: Sequence[Tensor], geometry: Sequence[int]) -> int:
        """Return how many rows one sample gives."""
        ...

    def rows(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        """Return the rows, `[N, K]` or `[groups, N, K]`."""
        ...

    def second_moment(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add the sum of the rows' outer products to `out`."""
        ...

    def sketch(
        self,
        samples: Sequence[Tensor],
        geometry: Sequence[int],
        bias: bool,
        omega: Tensor,
        out: Tensor,
    ) -> Tensor:
        """Add the second moment's product with `omega`, and its trace, to `out`."""
        ...

    def diagonal(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add the sum of the rows' squares to `out`."""
        ...

    def block_moments(
        self,
        samples: Sequence[Tensor],
        geometry: Sequence[int],
        bias: bool,
        out: Sequence[Tensor],
    ) -> None:
        """Add to each of `out` the sum of the outer products of its block of the rows."""
        ...

    def output_rows(self, outputs: Tensor, geometry: Sequence[int]) -> Tensor:
        """Return outputs, or their gradient, as rows of one layer or of groups."""
        ...
