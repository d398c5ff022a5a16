"""Where a parameter is, what is done with it there, and what a kind of local Fisher may ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, fx

from sngd_compile.config import Config
from sngd_compile.fisher.kinds.base import NextActivation
from sngd_compile.layout import Layout
from sngd_compile.plan.activation import common
from sngd_compile.plan.matching import Findings, Found
from sngd_compile.rules import RULES
from sngd_compile.rules.convolution import Convolution
from sngd_compile.rules.transposed_convolution import TransposedConvolution

WITH_TAPS = (Convolution.name, TransposedConvolution.name)
"""Rules of weights `[., ., *kernel]`, the taps of an input channel being neighbours."""


@dataclass(frozen=True)
class Occurrence:
    """One module and name that hold a parameter, and what the module does with it.

    Args:
        owner: Number of the module.
        parameters: All parameters of the module.
        name: Of this one.
        findings: What the module does with its parameters.
        after: Says what follows a call of the module; None where no graph shows it.
    """

    owner: int
    parameters: Mapping[str, Tensor | None]
    name: str
    findings: Findings
    after: Callable[[fx.Node], NextActivation] | None = None

    @property
    def found(self) -> Found:
        """What the module does with the parameter."""
        return self.findings.found[self.name]

    @property
    def is_compiled(self) -> bool:
        """Whether its calls are in a frame compiled with `backend="sngd"`."""
        return self.findings.graph is None and isinstance(self.found, tuple)


@dataclass(frozen=True)
class WeightUses:
    """All uses of one weight, see `Uses`, which a kind of local Fisher decides on.

    Args:
        weight: The weight.
        layout: How it is laid out as matrices.
        rule: Name of the rule that matched.
        config: Of this weight.
        held: Who holds it.
    """

    weight: Tensor
    layout: Layout
    rule: str
    config: Config
    held: Sequence[Occurrence]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weight."""
        return self.weight.dtype

    @property
    def taps(self) -> int:
        """Neighbouring weights that belong to one input channel; 1 but for convolutions."""
        return prod(self.weight.shape[2:]) if self.rule in WITH_TAPS else 1

    @property
    def is_compiled(self) -> bool:
        """Whether its calls are in a frame compiled with `backend="sngd"`."""
        return any(occurrence.is_compiled for occurrence in self.held)

    def next_activation(self) -> NextActivation:
        """Say what follows every call of the weight."""
        return common(
            occurrence.after(call.node)
            for occurrence in self.held
            if occurrence.after is not None and isinstance(occurrence.found, tuple)
            for call in occurrence.found
        )

    def hidden_outputs(self) -> str:
        """Say why the outputs of the weight's calls cannot be seen, or ""."""
        reasons = (self._hidden_outputs(occurrence) for occurrence in self.held)
        return next((reason for reason in reasons if reason), "")

    def _hidden_outputs(self, occurrence: Occurrence) -> str:
        """Say why the outputs of the calls in one module cannot be seen, or ""."""
        uses = occurrence.found if isinstance(occurrence.found, tuple) else ()
        # Asked first, because a frame has no graph here either, and the remedy is another.
        if occurrence.is_compiled:
            return "a frame compiled with backend='sngd' observes inputs only; use reconstruct"
        if occurrence.findings.graph is None:
            return "its module's forward runs as written, and its outputs are not observed"
        for call in uses:
            if not RULES[call.rule].has_output_rows:
                return f"the rule {call.rule} does not say which rows its outputs have"
            if call.use.layout.swapped_width(self.layout):
                return "one of its uses is transposed: its inputs are the outputs of the others"
        return ""
