"""The full local Fisher of a layer whose outputs a softmax turns into probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sngd_compile.plan.activation import RETURNED, Following
from sngd_compile.plan.parameter_uses import Decision, Holding, hidden_outputs, what_follows


def of_logits(decision: Decision, held: Sequence[Holding]) -> Decision:
    """Give all weights of a layer one local Fisher, where its outputs are the model's logits.

    Otherwise "shared" is taken, and the note says why.
    """
    reason = _without_logits(decision, held)
    found = Following("", reason) if reason else _logits(decision, held)
    if found.activation == RETURNED:
        note = f"its outputs are logits: {found.reason}"
        return replace(decision, activation="softmax", note=note)
    return decision.kept_shared(found.reason)


def _without_logits(decision: Decision, held: Sequence[Holding]) -> str:
    """Say why the outputs of a weight cannot have one local Fisher together, or ""."""
    layout, limit = decision.layout, decision.config.max_factor_bytes
    if layout.groups is not None:
        return "its groups have factors of their own, and one softmax goes over all of them"
    if layout.outputs == 1:
        return "the softmax of one output is constant"
    size = layout.outputs * (layout.width + (decision.bias is not None))
    bytes_of_factor = size**2 * max(4, decision.dtype.itemsize)
    if bytes_of_factor > limit:
        return (
            f"a factor over all {size:,} weights, {bytes_of_factor:,} bytes, is above "
            f"max_factor_bytes = {limit:,}"
        )
    return hidden_outputs(held, layout)


def _logits(decision: Decision, held: Sequence[Holding]) -> Following:
    """Find out whether the model returns what every call gives, unless that is configured."""
    configured = decision.config.activation
    if configured == "auto":
        return what_follows(held)
    activation = RETURNED if configured == "linear" else configured
    return Following(activation, f"{configured} follows, as configured")
