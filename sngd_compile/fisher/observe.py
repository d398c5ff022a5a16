"""The one op of a reconstructed graph that changes something: it adds to `sum` and `count`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sngd_compile.fisher.blocks import matrices
from sngd_compile.fisher.layer import REJECTED, ROWS, FisherLayer
from sngd_compile.fisher.samples import draw, finite_samples
from sngd_compile.fisher.schedule import MOST_ROWS, OBSERVING


class Statistics(Protocol):
    """What a rule knows about turning activations into a second moment."""

    @property
    def least_samples(self) -> int:
        """Fewest samples that stand for a batch."""
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


STATISTICS: dict[str, Statistics] = {}
"""Rules by name; the observing op carries the name in its graph."""


def observe(
    fisher: FisherLayer,
    rule: str,
    inputs: Sequence[Tensor],
    geometry: Sequence[int],
    observing: bool,
    swapped: int = 0,
    group: int | None = None,
) -> None:
    """Add the rows of one forward pass to the Fisher layer's sum and count.

    Args:
        fisher: The local Fisher layer of the weight.
        rule: Name of the rule that makes rows of the inputs.
        inputs: The activations that meet the weight.
        geometry: Static integers of the layer (kernel, stride, ...), as the rule wrote them.
        observing: Whether the pass trains: train mode, with gradients.
        swapped: 0; or, for a use in which the weight's inputs are its outputs and the other way
            round, the width of the rows.
        group: The one group that the rows belong to; None for all that the rule makes.
    """
    # Eager execution asks the gate before it pays for a dispatch; a graph leaves that to the op.
    if observing and (torch.compiler.is_compiling() or fisher.schedule.observing):
        sum = fisher.sum if group is None else fisher.sum[group]
        statistics = (sum, fisher.tally, fisher.schedule.gate)
        diagonal = fisher.kind == "diagonal"
        form = (fisher.has_bias, diagonal, swapped, fisher.blocks)
        add_to_sum(statistics, inputs, rule, geometry, form)


def add_to_sum(
    statistics: Sequence[Tensor],
    inputs: Sequence[Tensor],
    rule: str,
    geometry: Sequence[int],
    form: tuple[bool, bool, int, Sequence[int]],
) -> None:
    """Call the op.

    Args:
        statistics: Sum, tally and gate.
        inputs: As in `observe`.
        rule: As in `observe`.
        geometry: As in `observe`.
        form: Bias, diagonal, swapped and blocks, as in `observe_`.
    """
    sum, tally, gate = statistics
    plain = [tensor.detach() for tensor in inputs]
    bias, diagonal, swapped, blocks = form
    arguments = (sum, tally, gate, plain, rule, list(geometry), bias, diagonal, swapped)
    torch.ops.sngd.observe_(*arguments, list(blocks))


def observe_(  # noqa: PLR0913, PLR0917 - an op's schema is flat
    sum: Tensor,
    tally: Tensor,
    gate: Tensor,
    inputs: Sequence[Tensor],
    rule: str,
    geometry: Sequence[int],
    bias: bool,
    diagonal: bool,
    swapped: int,
    blocks: Sequence[int],
) -> None:
    """Add `sum_n x~_n x~_n^T` to `sum` and N to `tally[ROWS]`, if the gate is open.

    Of blocks, none or the size of each, only those on the diagonal are added. A swapped use has
    rows over the outputs: every output's Fisher is a multiple of the identity, on average
    `sum_n |x_n|^2 / swapped`. A pass with a number that is not finite adds to `tally[REJECTED]`
    alone. A forward pass that activation checkpointing repeats inside the backward pass is not
    counted again. The arithmetic is float32 or wider whatever the activations are: what takes
    halves multiplies them exactly.
    """
    if is_shut(gate):
        return
    statistics = STATISTICS[rule]
    samples = statistics.samples(inputs, geometry)
    rows_each = statistics.rows_per_sample(samples, geometry)
    if samples[0].shape[0] * rows_each == 0:
        return
    samples = draw(samples, int(gate[MOST_ROWS]), rows_each, statistics.least_samples, gate)
    samples, finite = finite_samples(samples, sum.dtype, statistics.takes_halves)

    def add_(total: Tensor) -> None:
        parts = matrices(total, blocks) if blocks else [total]
        _add_rows(statistics, samples, geometry, bias, parts, diagonal, swapped)

    add_if_finite_(sum, finite, add_)
    tally[ROWS].add_(finite * (samples[0].shape[0] * rows_each))
    tally[REJECTED].add_(~finite)


def is_shut(gate: Tensor) -> bool:
    """Say whether nothing is to be observed now, or a checkpoint repeats what has been."""
    return not int(gate[OBSERVING]) or torch._C._current_graph_task_id() != -1


def add_if_finite_(sum: Tensor, finite: Tensor, add_: Callable[[Tensor], None]) -> None:
    """Let `add_` add to `sum` the rows of a pass that is finite; of another, nothing.

    A device is not waited for: the rows are added to zeros there, and those to the sum or not. Not
    even rows of zeros may be added instead, since their bias is 1.
    """
    if answers_at_once(sum.device):
        if finite:
            add_(sum)
        return
    added = torch.zeros_like(sum)
    add_(added)
    sum.add_(torch.where(finite, added, 0))


def answers_at_once(device: torch.device) -> bool:
    """Say whether a number on the device can be asked for without waiting for what is queued."""
    return device.type == "cpu"


def _add_rows(
    statistics: Statistics,
    samples: Sequence[Tensor],
    geometry: Sequence[int],
    bias: bool,
    parts: Sequence[Tensor],
    diagonal: bool,
    swapped: int,
) -> None:
    """Add the rows to a full or diagonal sum, or to several, those of its blocks."""
    if swapped:
        squares = statistics.diagonal(samples, geometry, False, parts[0].new_zeros(swapped))
        for part in parts:
            target = part if diagonal else part.diagonal(dim1=-2, dim2=-1)
            target.add_(squares.sum() / swapped)
    elif diagonal:
        statistics.diagonal(samples, geometry, bias, parts[0])
    elif len(parts) > 1:
        statistics.block_moments(samples, geometry, bias, parts)
    else:
        statistics.second_moment(samples, geometry, bias, parts[0])


# Every step of a compiled graph comes here, mostly to find the gate shut: `custom_op` would take
# five times as long for that. A CUDA graph would replay what the gate said while it was recorded.
# Strides of inputs are left as they come, or inductor would copy channels-last images every step.
torch.library.define(
    "sngd::observe_",
    "(Tensor(a!) sum, Tensor(b!) tally, Tensor gate, Tensor[] inputs, str rule, SymInt[] geometry, "
    "bool bias, bool diagonal, SymInt swapped, SymInt[] blocks) -> ()",
    tags=(torch.Tag.cudagraph_unsafe, torch.Tag.flexible_layout),
)
torch.library.impl("sngd::observe_", "default", observe_)
torch.library.register_fake("sngd::observe_", lambda *arguments: None)
