"""The local Fishers that divide a layer further: into blocks of inputs, or into units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from sngd_compile.config import Config
from sngd_compile.fisher.blocks import block_sizes
from sngd_compile.layout import Layout
from sngd_compile.plan.activation import RETURNED, Following
from sngd_compile.plan.parameter_uses import (
    Decision,
    Holding,
    hidden_outputs,
    not_to_be_had,
    what_follows,
)
from sngd_compile.rules.convolution import Convolution
from sngd_compile.rules.transposed_convolution import TransposedConvolution

WITH_TAPS = (Convolution.name, TransposedConvolution.name)
"""Rules of weights `[., ., *kernel]`, the taps of an input channel being neighbours."""


def blocks_of(
    shape: Sequence[int],
    layout: Layout,
    rule: str,
    has_bias: bool,
    config: Config,
    held: Sequence[Holding],
) -> tuple[tuple[int, ...], str]:
    """Cut the inputs of a weight into blocks.

    Args:
        shape: Of the weight.
        layout: How it is laid out.
        rule: Name of its rule.
        has_bias: Whether a bias joins.
        config: Of the weight.
        held: Who holds it.

    Returns:
        The size of each block, or () where "shared" is taken; and a note for the plan.
    """
    if any(holding.is_compiled for holding in held):
        reason = "a frame compiled with backend='sngd' knows no blocks; use reconstruct"
        return (), not_to_be_had("block", reason)
    taps = prod(shape[2:]) if rule in WITH_TAPS else 1
    sizes = block_sizes(layout.width, config.block_size, taps, has_bias)
    if len(sizes) == 1:
        return (), 'one block holds all its inputs: that is "shared"'
    cut = taps > config.block_size
    note = f"its {taps} taps are more than block_size: blocks cut through channels" if cut else ""
    return sizes, note


def by_unit(decision: Decision, held: Sequence[Holding]) -> Decision:
    """Give every output a local Fisher, where the activation that follows is known.

    Otherwise "shared" is taken, and the note says why.
    """
    reason = _without_units(decision, held)
    found = Following("", reason) if reason else _activation(decision, held)
    if found.activation not in {"", RETURNED}:
        note = f"its units are {found.activation}: {found.reason}"
        return replace(decision, activation=found.activation, note=note)
    return decision.kept_shared(found.reason)


def _without_units(decision: Decision, held: Sequence[Holding]) -> str:
    """Say why the outputs of a weight cannot have local Fishers, or ""."""
    layout, limit = decision.layout, decision.config.max_factor_bytes
    units = layout.all_outputs
    size = layout.width + (decision.bias is not None)
    bytes_of_factors = units * size**2 * max(4, decision.dtype.itemsize)
    if bytes_of_factors > limit:
        return (
            f"{units:,} factors of together {bytes_of_factors:,} bytes are above "
            f"max_factor_bytes = {limit:,}"
        )
    return hidden_outputs(held, layout)


def _activation(decision: Decision, held: Sequence[Holding]) -> Following:
    """Take the activation that is configured, or the one that follows every call."""
    configured = decision.config.activation
    if configured == "linear":
        return Following("", "a linear unit's Fisher is that of all")
    if configured != "auto":
        return Following(configured, "as configured")
    return what_follows(held)
