"""`E[nu(a_j) x~ x~^T]` for each output a_j: the method's unit-wise local Fisher.

nu is the Fisher information that one unit's output carries on its pre-activation, see
`information`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

import sngd_kernels
from sngd_compile.fisher.information import INFORMATION
from sngd_compile.fisher.kinds.base import Choice, FisherKind, NextActivation, Uses
from sngd_compile.fisher.roots.base import Root
from sngd_compile.fisher.roots.unit import UnitRoot
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.fisher.statistics import Statistics
from sngd_compile.registry import register_kind


@register_kind
class Unit(FisherKind):
    """The local Fisher of the authors' hidden layers: O matrices.

    Source: arXiv 2412.07441; Sun and Nielsen 2017, arXiv 1606.06069. Tested by
    tests/fisher/test_unit.py.
    """

    name = "unit"
    sees_outputs = True

    def choose(self, spec: FisherSpec, uses: Uses) -> Choice | str:
        """Take the activation that is configured, or the one that follows every call."""
        reason = uses.hidden_outputs()
        found = NextActivation("", reason) if reason else self._activation(uses)
        if not found.activation:
            return found.reason
        note = f"its units are {found.activation}: {found.reason}"
        return Choice(replace(spec, activation=found.activation), note)

    def _activation(self, uses: Uses) -> NextActivation:
        configured = uses.config.activation
        if configured != "auto":
            return NextActivation(configured, "as configured")
        return uses.next_activation()

    def factor_text(self, spec: FisherSpec) -> str:
        """Return how many matrices of which size."""
        return f"{spec.layout.all_outputs} x {spec.size}"

    def factor_shape(self, spec: FisherSpec) -> tuple[int, ...]:
        """Return `[groups * O, D, D]`."""
        return (spec.layout.all_outputs, spec.size, spec.size)

    def first_root(self, spec: FisherSpec, dtype: torch.dtype, device: torch.device) -> Root:
        """Return a root for every output."""
        units = spec.layout.all_outputs
        full = spec.new_root(spec.size, spec.has_bias, units, dtype, device)
        return UnitRoot(full, spec.has_bias)

    def add_rows(
        self,
        spec: FisherSpec,
        statistics: Statistics,
        samples: Sequence[Tensor],
        outputs: Tensor | None,
        geometry: Sequence[int],
        sum: Tensor,
    ) -> None:
        """Add rows `[N, K]` weighted by nu `[N, O]`, or `[G, N, K]` by `[N, G, O]`."""
        assert outputs is not None  # since `sees_outputs`
        rows = statistics.rows(samples, geometry)
        # A convolution's unit has a pre-activation at every position, as many as there are patches.
        nu = INFORMATION[spec.activation](outputs.flatten(0, 1))
        if rows.dim() == 2:
            sngd_kernels.unit_second_moment(rows, nu, bias=spec.has_bias, out=sum)
            return
        groups = sum.unflatten(0, (len(rows), -1))
        for of_group, weights, moments in zip(rows, nu.unbind(1), groups, strict=True):
            sngd_kernels.unit_second_moment(of_group, weights, bias=spec.has_bias, out=moments)

    def observation_work(self, spec: FisherSpec, rows: int) -> int:
        """Count half a square for each output."""
        return spec.layout.outputs * super().observation_work(spec, rows)

    def factor_count(self, spec: FisherSpec) -> int:
        """Return the number of outputs."""
        return spec.layout.all_outputs
