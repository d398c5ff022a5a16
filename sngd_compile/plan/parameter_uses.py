"""Who holds a parameter, and what is decided for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from sngd_compile.config import Config
from sngd_compile.layout import Layout
from sngd_compile.plan.activation import Following, common
from sngd_compile.plan.matching import Findings, Found
from sngd_compile.plan.records import Place, Site, noted_together
from sngd_compile.rules import RULES


@dataclass(frozen=True)
class Holding:
    """One module and name that hold a parameter, and what the module does with it.

    Args:
        owner: Number of the module.
        parameters: All parameters of the module.
        name: Of this one.
        findings: What the module does with its parameters.
        after: Says what follows a call of the module; None where nobody can.
    """

    owner: int
    parameters: Mapping[str, Tensor | None]
    name: str
    findings: Findings
    after: Callable[[fx.Node], Following] | None = None

    @property
    def found(self) -> Found:
        """What the module does with the parameter."""
        return self.findings.found[self.name]

    @property
    def is_compiled(self) -> bool:
        """Whether its calls are in a frame compiled with `backend="sngd"`."""
        return self.findings.graph is None and isinstance(self.found, tuple)


@dataclass(frozen=True)
class Decision:
    """What becomes of a weight; see `Site`."""

    bias: Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: Layout
    rule: str
    kind: str
    config: Config
    note: str
    blocks: tuple[int, ...] = ()
    activation: str = ""
    root_reason: str = ""

    def kept_shared(self, reason: str) -> Decision:
        """Return the decision with "shared" for a kind that is not to be had, and say why."""
        return replace(self, kind="shared", note=not_to_be_had(self.kind, reason))

    def site(self, places: tuple[Place, ...], note: str) -> Site:
        """Return the site, with one more note."""
        notes = noted_together(self.note, note, self.root_reason)
        return Site(
            places,
            self.shape,
            self.dtype,
            self.layout,
            self.rule,
            self.kind,
            self.config,
            notes,
            self.blocks,
            self.activation,
            self.root_reason,
        )


def what_follows(held: Sequence[Holding]) -> Following:
    """Say what follows every call of a weight."""
    return common(
        holding.after(call.node)
        for holding in held
        if holding.after is not None and isinstance(holding.found, tuple)
        for call in holding.found
    )


def not_to_be_had(kind: str, reason: str) -> str:
    """Note that "shared" stands in for a local Fisher."""
    return f'fisher = "{kind}" is not to be had, "shared" is kept: {reason}'


def hidden_outputs(held: Iterable[Holding], layout: Layout) -> str:
    """Say why the outputs of a weight's calls cannot be seen, or ""."""
    reasons = (_hidden_outputs(holding, layout) for holding in held)
    return next((reason for reason in reasons if reason), "")


def _hidden_outputs(holding: Holding, layout: Layout) -> str:
    """Say why the outputs of the calls in one module cannot be seen, or ""."""
    uses = holding.found if isinstance(holding.found, tuple) else ()
    if holding.is_compiled:
        return "a frame compiled with backend='sngd' observes inputs only; use reconstruct"
    if holding.findings.graph is None:
        return "its module's forward runs as it is, and its outputs are not seen"
    for call in uses:
        if not RULES[call.rule].has_output_rows:
            return f"the rule {call.rule} does not say what rows its outputs have"
        if call.use.layout.swapped_width(layout):
            return "one of its calls takes its inputs for its outputs"
    return ""
