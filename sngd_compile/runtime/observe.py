"""The one op of a reconstructed graph that changes something: it adds to `sum` and `count`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from sngd_compile.runtime.fisher import OBSERVING, STEP, FisherLayer


class Statistics(Protocol):
    """What a rule knows about turning activations into a second moment."""

    least_samples: int

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return the activations with one sample per index of axis 0."""
        ...

    def rows_per_sample(self, samples: Sequence[Tensor], geometry: Sequence[int]) -> int:
        """Return how many rows one sample gives."""
        ...

    def second_moment(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool
    ) -> Tensor:
        """Return the sum of the rows' outer products."""
        ...


STATISTICS: dict[str, Statistics] = {}
"""Rules by name; the observing op carries the name in its graph."""


def observe(
    fisher: FisherLayer,
    rule: str,
    inputs: Sequence[Tensor],
    geometry: Sequence[int],
    observing: bool,
) -> None:
    """Add the rows of one forward pass to the Fisher layer's sum and count.

    Args:
        fisher: The local Fisher layer of the weight.
        rule: Name of the rule that makes rows of the inputs.
        inputs: The activations that meet the weight.
        geometry: Static integers of the layer (kernel, stride, ...), as the rule wrote them.
        observing: Whether the pass trains: train mode, with gradients.
    """
    if observing:
        torch.ops.sngd.observe_(
            fisher.sum,
            fisher.count,
            fisher.rejected,
            fisher.gate,
            [tensor.detach() for tensor in inputs],
            rule,
            list(geometry),
            fisher.has_bias,
            fisher.max_rows,
            fisher.config.seed,
        )


@torch.library.custom_op("sngd::observe_", mutates_args=("sum", "count", "rejected"))
def observe_(
    sum: Tensor,
    count: Tensor,
    rejected: Tensor,
    gate: Tensor,
    inputs: Sequence[Tensor],
    rule: str,
    geometry: Sequence[int],
    bias: bool,
    max_rows: int,
    seed: int,
) -> None:
    """Add `sum_n x~_n x~_n^T` and N, unless the gate is closed or a number is not finite.

    A forward pass that activation checkpointing repeats inside the backward pass is not counted
    again. The arithmetic is float32 or wider whatever the activations are.
    """
    if not int(gate[OBSERVING]) or torch._C._current_graph_task_id() != -1:
        return
    statistics = STATISTICS[rule]
    samples = statistics.samples(inputs, geometry)
    available = samples[0].shape[0]
    rows_each = statistics.rows_per_sample(samples, geometry)
    if available * rows_each == 0:
        return
    wanted = available if max_rows < 0 else max(-(-max_rows // rows_each), statistics.least_samples)
    if wanted < available:
        generator = torch.Generator().manual_seed(seed + int(gate[STEP]))
        chosen = torch.randperm(available, generator=generator)[:wanted].to(samples[0].device)
        samples = [tensor.index_select(0, chosen) for tensor in samples]
    wide = [tensor.to(torch.promote_types(tensor.dtype, sum.dtype)) for tensor in samples]
    added = statistics.second_moment(wide, geometry, bias)
    finite = added.isfinite().all()
    sum.add_(torch.where(finite, added, 0.0).to(sum.dtype))
    count.add_(finite * (samples[0].shape[0] * rows_each))
    rejected.add_(~finite)


@observe_.register_fake
def _(
    sum: Tensor,
    count: Tensor,
    rejected: Tensor,
    gate: Tensor,
    inputs: Sequence[Tensor],
    rule: str,
    geometry: Sequence[int],
    bias: bool,
    max_rows: int,
    seed: int,
) -> None:
    return None
