"""Showing a layer's output gradient to its Fisher layer, during the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import sngd_kernels
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.output_side import SAMPLES, OutputSide
from sngd_compile.fisher.samples import draw, strided
from sngd_compile.registry import RULES
from sngd_compile.torch_private import finds_shapes, gradient_divisor
from sngd_kernels.batching import one_by_one

LARGEST = 1e152
"""Entries of a gradient whose squares float64 holds; larger ones count as not finite."""


def observe_gradient(
    fisher: FisherLayer, output: Tensor, rule: str, geometry: Sequence[int], observing: bool
) -> Tensor:
    """Return the output of a layer, whose gradient its Fisher layer will be shown.

    Args:
        fisher: The local Fisher layer of the weight; it has an output side.
        output: Of the layer, as the rule knows it.
        rule: Name of the rule that makes rows of it.
        geometry: Static integers of the layer (kernel, stride, ...), as the rule wrote them.
        observing: Whether the pass trains: train mode, with gradients.

    Source: docs/method.md, local Fishers. Tested by tests/fisher/test_kronecker.py.
    """
    if not observing or not output.requires_grad:
        return output
    side, numbers = fisher.output_side, tuple(geometry)
    assert side is not None
    if torch.compiler.is_compiling():
        statistics = (side.sum, side.tally, fisher.schedule.gate)
        observed: Tensor = _Observed.apply(output, *statistics, rule, numbers)  # type: ignore[no-untyped-call]
        return observed
    # A hook, where nothing is traced: a layer that comes next may change the output in place.
    if fisher.is_observing and not finds_shapes():
        # Asked here, since the backward pass of a GPU runs in another thread.
        form = rule, numbers, gradient_divisor()
        output.register_hook(partial(_add, side, fisher.schedule.gate, form))
    return output


def _add(side: OutputSide, gate: Tensor, form: tuple[str, Any, int], g: Tensor) -> None:
    """Show a gradient as it will be: of micro-batches the schedule of a pipeline takes the mean."""
    rule, geometry, divisor = form
    shown = strided(g.detach() / divisor if divisor > 1 else g.detach())
    torch.ops.sngd.observe_gradient_(side.sum, side.tally, gate, shown, rule, list(geometry))


class _Observed(torch.autograd.Function):
    """The identity, which shows its gradient: for graphs, which take no hook."""

    @staticmethod
    def forward(
        output: Tensor, sum: Tensor, tally: Tensor, gate: Tensor, rule: str, geometry: Any
    ) -> Tensor:
        """Return a copy, which a layer that comes next may change in place."""
        return output.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep where the gradient goes."""
        _, ctx.sum, ctx.tally, ctx.gate, ctx.rule, ctx.geometry = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Add the outer products of the gradient."""
        (g,) = gradients
        statistics = (ctx.sum, ctx.tally, ctx.gate)
        # A compiler follows no question about the form of a gradient; it has made it strided.
        shown = g if torch.compiler.is_compiling() else strided(g)
        torch.ops.sngd.observe_gradient_(*statistics, shown, ctx.rule, list(ctx.geometry))
        return (g, None, None, None, None, None)


# A CUDA graph would replay what the gate said while it was recorded.
@torch.library.custom_op(
    "sngd::observe_gradient_", mutates_args=("sum", "tally"), tags=(torch.Tag.cudagraph_unsafe,)
)
def observe_gradient_(
    sum: Tensor,
    tally: Tensor,
    gate: Tensor,
    gradient: Tensor,
    rule: str,
    geometry: Sequence[int],
) -> None:
    """Add `sum g g^T` to `sum` and N to `tally[SAMPLES]`, if the gate is open.

    Rows beyond the most that are wanted are left out, at random, and the sum is scaled up. A
    gradient that is not finite, or too large to square, adds nothing. The products are float32 or
    wider, of rows that are divided by their largest entry.
    """
    observing, seed, most_rows = gate.tolist()
    if not observing or finds_shapes():
        return
    statistics = RULES[rule]
    rows = statistics.output_rows(gradient, geometry)
    if rows.numel() == 0:
        return
    samples, positions = rows.shape[:2]
    (drawn,) = draw([rows], most_rows, positions, statistics.least_samples, seed)
    wide = drawn.to(torch.promote_types(drawn.dtype, torch.float32))
    largest = wide.abs().amax()
    finite = largest < LARGEST  # false of what is no number too
    # Squares of small gradients underflow in float32; those of rows divided by the largest do not.
    unit = torch.where(finite & (largest > 0), largest, 1.0)
    flat = torch.where(finite, wide / unit, 0.0).flatten(0, 1)
    blocks = [flat] if flat.dim() == 2 else flat.unbind(1)
    moments = torch.stack([sngd_kernels.second_moment(block, bias=False) for block in blocks])
    scale = unit.double().square() * (samples / drawn.shape[0])
    sum.addcmul_(moments.view_as(sum).double(), scale)
    tally[SAMPLES].add_(finite * samples)


@observe_gradient_.register_fake
def _(*arguments: Any) -> None:
    return None


observe_gradient_.register_vmap(one_by_one(observe_gradient_))
