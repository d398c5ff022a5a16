"""Diagonal blocks of a factor: which inputs share one, and how the blocks are stored.

A factor in blocks is flat, `[*, L]`: one block after the other, each row by row. All but the last
have the same size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sngd_compile.layout import Layout


def block_sizes(width: int, block_size: int, taps: int, has_bias: bool) -> tuple[int, ...]:
    """Cut the inputs of a layer into blocks of neighbours.

    Args:
        width: K, weights of one output.
        block_size: Inputs in a block.
        taps: Neighbours that belong to one input channel: the taps of a convolution, else 1. A
            block holds whole channels where one fits into it.
        has_bias: Whether a bias joins; it is in the last block.

    Returns:
        The size of each block, bias included; the last one has the inputs that are left.
    """
    step = block_size // taps * taps or block_size
    sizes = [min(step, width - start) for start in range(0, width, step)]
    sizes[-1] += has_bias
    return tuple(sizes)


def factor_shape(kind: str, layout: Layout, size: int, blocks: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a factor over the inputs of a layer.

    Args:
        kind: Local Fisher.
        layout: How the weight is laid out as matrices `[*, O, K]`.
        size: D, weights of one output, bias included.
        blocks: Of a block kind, the size of each.
    """
    lead = () if layout.groups is None else (layout.groups,)
    if kind == "block":
        return (*lead, sum(block**2 for block in blocks))
    if kind == "unit":
        return (layout.all_outputs, size, size)
    if kind == "softmax":
        return (layout.outputs * size, layout.outputs * size)
    return (*lead, size) if kind == "diagonal" else (*lead, size, size)


def matrices(flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """View a flat factor as its blocks, `[*, b, b]` each."""
    parts = flat.split([size**2 for size in sizes], -1)
    return [part.unflatten(-1, (size, size)) for part, size in zip(parts, sizes, strict=True)]


def head_and_tail(flat: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the equal blocks, those of all groups side by side, and the last: `[*, b, b]` each."""
    size, count = sizes[0], len(sizes) - 1
    length = count * size**2
    head = flat[..., :length].reshape(-1, size, size)
    return head, flat[..., length:].unflatten(-1, (sizes[-1], sizes[-1]))
