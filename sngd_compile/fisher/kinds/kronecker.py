"""`E[x~ x~^T] (x) E[g g^T]`, g the gradient at a layer's outputs: K-FAC as two Fisher layers."""

from __future__ import annotations

from math import hypot, sqrt

import torch
from torch import Tensor

from sngd_compile.config import Config
from sngd_compile.fisher.kinds.base import Choice, Damped, FisherKind, Uses
from sngd_compile.fisher.output_side import OutputSide
from sngd_compile.fisher.roots.base import Root
from sngd_compile.fisher.roots.kronecker import KroneckerRoot
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.registry import register_kind


@register_kind
class Kronecker(FisherKind):
    """The Fisher of K-FAC: it goes beyond the paper, whose local Fishers are those of inputs.

    Source: Martens and Grosse 2015, arXiv 1503.05671; docs/method.md, local Fishers. Tested by
    tests/fisher/test_kronecker.py.
    """

    name = "kronecker"
    has_output_side = True
    measures_outputs = True

    def choose(self, spec: FisherSpec, uses: Uses) -> Choice | str:
        """Say why the gradients at the outputs cannot be observed, if they cannot."""
        if uses.dtype == torch.float16:
            return "w' would be as small as the gradients, which float16 cannot hold; use bfloat16"
        reason = uses.hidden_outputs()
        return reason or Choice(spec)

    def first_root(self, spec: FisherSpec, dtype: torch.dtype, device: torch.device) -> Root:
        """Return a root for the inputs and one for the outputs."""
        groups = spec.layout.groups
        inputs = spec.new_root(spec.size, spec.has_bias, groups, dtype, device)
        return KroneckerRoot(
            inputs, spec.new_root(spec.layout.outputs, False, groups, dtype, device)
        )

    def damped(
        self, spec: FisherSpec, factor: Tensor, outputs: OutputSide | None, config: Config
    ) -> tuple[Damped, ...]:
        """Share the damping of `A (x) B` between the two, in float64: `A + pi d`, `B + d / pi`.

        `d^2 = damping_rel_trace^2 trace(A) trace(B) + damping_abs mean(B)`, `mean` the mean
        eigenvalue, and `pi^2 = mean(A) / mean(B)`: as with other kinds, `damping_abs` has the units
        of A. Of groups the traces are means. () for a factor of zeros.

        Source: K-FAC (arXiv 1503.05671), section 6.3.
        """
        assert outputs is not None  # since `has_output_side`
        sides = (factor * spec.scale, outputs.factor)
        traces = [float(_traces_of(side).mean()) for side in sides]
        means = [trace / side.shape[-1] for trace, side in zip(traces, sides, strict=True)]
        if 0.0 in means:
            return ()
        # Squared, since two factors share it: else each would get its square root, 3 % of the trace
        # by default, which is more than the largest eigenvalue of most factors (decision 11).
        # Roots first: a product or a quotient of traces of hostile batches leaves float64.
        relative = config.damping_rel_trace * sqrt(traces[0]) * sqrt(traces[1])
        damping = hypot(relative, sqrt(config.damping_abs) * sqrt(means[1]))
        pi = sqrt(means[0]) / sqrt(means[1])
        damped = []
        for side, part in zip(sides, (damping * pi, damping / pi), strict=True):
            matrix = self.with_mirror(side.double() / 2)
            matrix.diagonal(dim1=-2, dim2=-1).add_(part)
            damped.append((matrix, part))
        return tuple(damped)


def _traces_of(factor: Tensor) -> Tensor:
    """Return the trace of every group's `[*, D, D]`, in float64."""
    return factor.diagonal(dim1=-2, dim2=-1).sum(-1).double()
