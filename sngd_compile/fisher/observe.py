"""The one op of a reconstructed graph that changes something: it adds to `sum` and `tally`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import CodeType, FrameType

import torch
from torch import Tensor

from sngd_compile.errors import ModelError
from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.layer import REJECTED, ROWS, FisherLayer
from sngd_compile.fisher.samples import draw, finite_samples, real, strided
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.fisher.statistics import Statistics
from sngd_compile.registry import RULES
from sngd_compile.torch_private import (
    OUTSIDE_BACKWARD,
    backward_pass,
    finds_shapes,
    gradient_divisor,
    repeats_a_forward,
)
from sngd_kernels.batching import one_by_one


def observe(  # noqa: PLR0913, PLR0917 - a node of a graph is flat
    fisher: FisherLayer,
    rule: str,
    inputs: Sequence[Tensor],
    geometry: Sequence[int],
    observing: bool,
    swapped: int = 0,
    group: int | None = None,
    output: Tensor | None = None,
) -> None:
    """Add the rows of one forward pass to the Fisher layer's sum and count.

    Args:
        fisher: The local Fisher layer of the weight.
        rule: Name of the rule that makes rows of the inputs.
        inputs: The activations that the weight multiplies.
        geometry: Static integers of the layer (kernel, stride, ...), as the rule wrote them.
        observing: Whether the pass trains: train mode, with gradients.
        swapped: 0; or, for a use in which the weight's inputs are its outputs and the other way
            round, the width of the rows.
        group: The one group that the rows belong to; None for all that the rule makes.
        output: What the call returns, for a kind of Fisher that sees outputs.
    """
    # Eager execution asks the gate before it pays for a dispatch; a graph leaves that to the op.
    if observing and (torch.compiler.is_compiling() or fisher.is_observing):
        sum = fisher.sum if group is None else fisher.sum[group]
        statistics = (sum, fisher.tally, fisher.schedule.gate)
        add_to_sum(statistics, inputs, output, (rule, list(geometry), fisher.spec.encoded, swapped))


def add_to_sum(
    statistics: Sequence[Tensor],
    inputs: Sequence[Tensor],
    output: Tensor | None,
    form: tuple[str, list[int], str, int],
) -> None:
    """Call the op.

    Args:
        statistics: Sum, tally and gate.
        inputs: As in `observe`.
        output: As in `observe`.
        form: Rule, geometry, the encoded record of the local Fisher, and swapped.
    """
    plain = [strided(tensor.detach()) for tensor in inputs]
    seen = None if output is None else strided(output.detach())
    torch.ops.sngd.observe_(*statistics, plain, seen, *form)


def observe_(  # noqa: PLR0913, PLR0917 - an op's schema is flat
    sum: Tensor,
    tally: Tensor,
    gate: Tensor,
    inputs: Sequence[Tensor],
    output: Tensor | None,
    rule: str,
    geometry: Sequence[int],
    encoded: str,
    swapped: int,
) -> None:
    """Add what the kind of Fisher makes of N rows to `sum`, and N to `tally[ROWS]`.

    Nothing is added while the gate is shut, nor for a forward pass that is repeated inside the
    backward pass: it has been counted; nor for one of a pipeline that only looks for shapes. A
    swapped use has rows over the outputs: every output's Fisher is a multiple of the identity, on
    average `sum_n |x_n|^2 / swapped`. A pass with a number that is not finite adds to
    `tally[REJECTED]` alone. The arithmetic is float32 or wider whatever the activations are: what
    takes halves multiplies them exactly.
    """
    observing, seed, most_rows = gate.tolist()
    if not observing or not _counts(inputs):
        return
    _refuse_compiled_pipeline(encoded)
    statistics: Statistics = RULES[rule]  # by name: an op takes tensors, numbers and strings
    samples = [real(tensor) for tensor in statistics.samples(inputs, geometry)]
    rows_each = statistics.rows_per_sample(samples, geometry)
    if samples[0].shape[0] * rows_each == 0:
        return
    seen = samples if output is None else [*samples, statistics.output_rows(output, geometry)]
    # Drawn before anything is widened or unfolded, which is what costs.
    least = max(statistics.least_samples, -(-statistics.least_rows // rows_each))
    seen = draw(seen, most_rows, rows_each, least, seed)
    # The kinds that see outputs weigh the rows in float32 or wider.
    seen, finite = finite_samples(seen, sum.dtype, statistics.takes_halves and output is None)
    samples, outputs = (seen, None) if output is None else (seen[:-1], seen[-1])
    spec = FisherSpec.decode(encoded)

    def add_(total: Tensor) -> None:
        if not swapped:
            kind_of(spec).add_rows(spec, statistics, samples, outputs, geometry, total)
            return
        squares = statistics.diagonal(samples, geometry, False, total.new_zeros(swapped))
        kind_of(spec).add_to_diagonal(spec, total, squares.sum() / swapped)

    add_if_finite_(sum, finite, add_)
    _count_(tally, finite, samples[0].shape[0] * rows_each)


def _counts(inputs: Sequence[Tensor]) -> bool:
    """Say whether a forward pass is a new one, on numbers of its own, and there are any."""
    if backward_pass() != OUTSIDE_BACKWARD and repeats_a_forward():
        return False
    # Not every rule can make rows of nothing.
    return not finds_shapes() and all(tensor.numel() for tensor in inputs)


def _refuse_compiled_pipeline(encoded: str) -> None:
    """Refuse gradients of micro-batches in a graph, which cannot know what they are divided by.

    Raises:
        ModelError: Where gradients at outputs count, and the schedule of a pipeline scales them.
    """
    divisor = gradient_divisor()
    if divisor > 1 and not _is_running(observe.__code__):
        spec = FisherSpec.decode(encoded)
        if kind_of(spec).has_output_side:
            raise ModelError(
                f"a compiled weight {spec.layout.view} with fisher={spec.kind!r}: the schedule of "
                f"this pipeline divides gradients by {divisor} afterwards, and gradients at "
                "outputs would count as if it did not. Nothing has been observed. Give the "
                "schedule scale_grads=False and divide the loss, or compile no stage"
            )


def _is_running(code: CodeType) -> bool:
    """Say whether a function is running in this thread."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def _count_(tally: Tensor, finite: Tensor, rows: int) -> None:
    """Count the rows of a pass, or that it was rejected."""
    if reads_without_sync(tally.device):
        tally[ROWS if finite else REJECTED].add_(rows if finite else 1)
        return
    # Products, not branches: `finite` may still be on its way from the device.
    tally[ROWS].add_(finite * rows)
    tally[REJECTED].add_(~finite)


def add_if_finite_(sum: Tensor, finite: Tensor, add_: Callable[[Tensor], None]) -> None:
    """Let `add_` add to `sum` the rows of a pass that is finite; of another, nothing.

    A device is not waited for: the rows are added to zeros there, and those to the sum or not. Not
    even rows of zeros may be added instead, since their bias is 1.
    """
    if reads_without_sync(sum.device):
        if finite:
            add_(sum)
        return
    added = torch.zeros_like(sum)
    add_(added)
    sum.add_(torch.where(finite, added, 0))


def reads_without_sync(device: torch.device) -> bool:
    """Say whether a number on the device can be asked for without waiting for what is queued."""
    return device.type == "cpu"


# Every step of a compiled graph comes here, mostly to find the gate shut: `custom_op` would take
# five times as long for that. A CUDA graph would replay what the gate said while it was recorded.
# Strides of inputs are left as they come, or inductor would copy channels-last images every step.
torch.library.define(
    "sngd::observe_",
    "(Tensor(a!) sum, Tensor(b!) tally, Tensor gate, Tensor[] inputs, Tensor? output, str rule, "
    "SymInt[] geometry, str encoded, SymInt swapped) -> ()",
    tags=(torch.Tag.cudagraph_unsafe, torch.Tag.flexible_layout),
)
torch.library.impl("sngd::observe_", "default", observe_)
torch.library.register_fake("sngd::observe_", lambda *arguments: None)
# Each entry is a pass by itself: its inputs have no axis of samples but those that it sees.
torch.library.register_vmap("sngd::observe_", one_by_one(torch.ops.sngd.observe_))
