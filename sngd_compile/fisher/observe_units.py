"""Showing a layer's inputs to its Fisher layer together with its outputs, which weigh them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import sngd_kernels
from sngd_compile.fisher.information import INFORMATION
from sngd_compile.fisher.layer import REJECTED, ROWS, FisherLayer
from sngd_compile.fisher.observe import STATISTICS, add_if_finite_, is_shut
from sngd_compile.fisher.samples import draw, finite_samples
from sngd_compile.fisher.schedule import MOST_ROWS


def observe_units(
    fisher: FisherLayer,
    rule: str,
    inputs: Sequence[Tensor],
    output: Tensor,
    geometry: Sequence[int],
    observing: bool,
) -> None:
    """Add the rows of one forward pass, weighted by its outputs, to the sum and count.

    Args:
        fisher: The local Fisher layer of the weight, of the unit or softmax kind.
        rule: Name of the rule that makes rows of inputs and output.
        inputs: The activations that meet the weight.
        output: What the call returns: the pre-activations.
        geometry: Static integers of the layer (kernel, stride, ...), as the rule wrote them.
        observing: Whether the pass trains: train mode, with gradients.

    Source: docs/method.md, local Fishers. Tested by tests/fishers/test_unit.py.
    """
    if observing and (torch.compiler.is_compiling() or fisher.schedule.observing):
        statistics = (fisher.sum, fisher.tally, fisher.schedule.gate)
        plain = [tensor.detach() for tensor in inputs]
        form = (rule, list(geometry), fisher.has_bias, fisher.activation)
        torch.ops.sngd.observe_units_(*statistics, plain, output.detach(), *form)


# A CUDA graph would replay what the gate said while it was recorded.
@torch.library.custom_op(
    "sngd::observe_units_", mutates_args=("sum", "tally"), tags=(torch.Tag.cudagraph_unsafe,)
)
def observe_units_(  # noqa: PLR0913, PLR0917 - an op's schema is flat
    sum: Tensor,
    tally: Tensor,
    gate: Tensor,
    inputs: Sequence[Tensor],
    output: Tensor,
    rule: str,
    geometry: Sequence[int],
    bias: bool,
    activation: str,
) -> None:
    """Add `sum_n nu(a_nj) x~_n x~_n^T` to `sum[j]` and N to `tally[ROWS]`, if the gate is open.

    With "softmax" for an activation, `sum_n (diag(p_n) - p_n p_n^T) (x) x~_n x~_n^T` to `sum`.
    Rows are drawn, and passes with a number that is not finite rejected, as `observe_` does; the
    pre-activations count as numbers of the pass.
    """
    if is_shut(gate):
        return
    statistics = STATISTICS[rule]
    samples = statistics.samples(inputs, geometry)
    rows_each = statistics.rows_per_sample(samples, geometry)
    if samples[0].shape[0] * rows_each == 0:
        return
    both = [*samples, statistics.output_rows(output, geometry)]
    both = draw(both, int(gate[MOST_ROWS]), rows_each, statistics.least_samples, gate)
    (*samples, outputs), finite = finite_samples(both, sum.dtype)

    def add_(total: Tensor) -> None:
        rows, each = statistics.rows(samples, geometry), outputs.flatten(0, 1)
        if activation == "softmax":
            _add_softmax(rows, each.softmax(-1), bias, total)
        else:
            _add_units(rows, INFORMATION[activation](each), bias, total)

    add_if_finite_(sum, finite, add_)
    tally[ROWS].add_(finite * (samples[0].shape[0] * rows_each))
    tally[REJECTED].add_(~finite)


def _add_units(rows: Tensor, nu: Tensor, bias: bool, sum: Tensor) -> None:
    """Add rows `[N, K]` weighted by `[N, O]`, or `[G, N, K]` by `[N, G, O]`."""
    if rows.dim() == 2:
        sngd_kernels.unit_second_moment(rows, nu, bias=bias, out=sum)
        return
    groups = sum.unflatten(0, (len(rows), -1))
    for of_group, weights, moments in zip(rows, nu.unbind(1), groups, strict=True):
        sngd_kernels.unit_second_moment(of_group, weights, bias=bias, out=moments)


def _add_softmax(rows: Tensor, p: Tensor, bias: bool, sum: Tensor) -> None:
    """Add rows `[N, K]`, weighted by the covariance of a class drawn with `p` `[N, O]`.

    `diag(p) - p p^T` is `sum_(i < j) p_i p_j (e_i - e_j)(e_i - e_j)^T`: no weight is negative, and
    nothing cancels where one p is nearly 1.
    """
    outputs = p.shape[1]
    first, second = torch.triu_indices(outputs, outputs, 1, device=p.device)
    pairs = sngd_kernels.unit_second_moment(rows, p[:, first] * p[:, second], bias=bias)
    blocks = sum.unflatten(0, (outputs, -1)).unflatten(-1, (outputs, -1)).transpose(1, 2)
    for one, other in ((first, second), (second, first)):
        blocks.index_put_((one, one), pairs, accumulate=True)
        blocks.index_put_((one, other), pairs.neg(), accumulate=True)


@observe_units_.register_fake
def _(*arguments: Any) -> None:
    return None
