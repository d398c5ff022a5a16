"""The local Fishers that divide a layer further: into blocks of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from sngd_compile.blocks import block_sizes
from sngd_compile.config import Config
from sngd_compile.holding import Holding
from sngd_compile.layout import Layout
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
        return (), (
            'fisher = "block" is not to be had, "shared" is kept: a frame compiled with '
            "backend='sngd' knows no blocks; use reconstruct"
        )
    taps = prod(shape[2:]) if rule in WITH_TAPS else 1
    sizes = block_sizes(layout.width, config.block_size, taps, has_bias)
    if len(sizes) == 1:
        return (), 'one block holds all its inputs: that is "shared"'
    cut = taps > config.block_size
    note = f"its {taps} taps are more than block_size: blocks cut through channels" if cut else ""
    return sizes, note
