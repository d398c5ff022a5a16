"""The diagonal blocks of `E[x~ x~^T]`: neighbouring inputs share one.

A factor in blocks is flat, `[*, L]`: one block after the other, each row by row. All but the last
have the same size. So averages, sums over processes and checkpoints need not know of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sngd_compile.fisher.kinds.base import Choice, FisherKind, Probe, Uses, metric_of
from sngd_compile.fisher.roots.base import Root
from sngd_compile.fisher.roots.block import BlockRoot
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.fisher.statistics import Statistics
from sngd_compile.registry import register_kind


@register_kind
class Block(FisherKind):
    """For layers so wide that a full factor is too large, or a step too dear.

    Source: docs/method.md, local Fishers; docs/tuning.md. Tested by tests/fisher/test_block.py.
    """

    name = "block"
    factor_words = "a factor in blocks"

    def choose(self, spec: FisherSpec, uses: Uses) -> Choice | str:
        """Cut the inputs into blocks; one block alone is "shared"."""
        if uses.is_compiled:
            # A frame carries the buffers of one root, and blocks have two (decision 13).
            return "a frame compiled with backend='sngd' knows no blocks; use reconstruct"
        size, taps = uses.config.block_size, uses.taps
        blocks = block_sizes(spec.layout.width, size, taps, spec.has_bias)
        if len(blocks) == 1:
            note = 'one block holds all its inputs: that is "shared"'
            return Choice(replace(spec, kind="shared"), note)
        cut = taps > size
        note = f"its {taps} taps are more than block_size: blocks cut through channels"
        return Choice(replace(spec, blocks=blocks), note if cut else "")

    def factor_text(self, spec: FisherSpec) -> str:
        """Return how many blocks there are, of which size, and the last."""
        blocks, groups = spec.blocks, spec.layout.groups
        text = f"{len(blocks) - 1} x {blocks[0]} + {blocks[-1]}"
        return text if groups is None else f"{groups} x ({text})"

    def factor_shape(self, spec: FisherSpec) -> tuple[int, ...]:
        """Return `[*, L]`."""
        return (*spec.lead, sum(block**2 for block in spec.blocks))

    def first_root(self, spec: FisherSpec, dtype: torch.dtype, device: torch.device) -> Root:
        """Return two roots: of the equal blocks as one batch, and of the last, with the bias."""
        blocks, groups = spec.blocks, spec.layout.groups
        many = (groups or 1) * (len(blocks) - 1)
        head = spec.new_root(blocks[0], False, many, dtype, device)
        tail = spec.new_root(blocks[-1], spec.has_bias, groups, dtype, device)
        return BlockRoot(head, tail, blocks)

    def parts(self, spec: FisherSpec, factor: Tensor) -> list[Tensor]:
        """Return the equal blocks, those of all groups side by side, and the last."""
        size, last = spec.blocks[0], spec.blocks[-1]
        length = (len(spec.blocks) - 1) * size**2
        head = factor[..., :length].reshape(-1, size, size)
        return [head, factor[..., length:].unflatten(-1, (last, last))]

    def largest_eigenvalue(self, factor: Tensor) -> None:
        """Say nothing: the damping is that of all blocks together."""
        return None

    def metric(self, spec: FisherSpec, root: Root) -> Tensor:
        """Return the metrics of the blocks along the diagonal, zeros beside them."""
        blocks = [metric_of(part) for part in matrices(root.matrix(), spec.blocks)]
        every = zip(*(block.reshape(-1, *block.shape[-2:]) for block in blocks), strict=True)
        dense = torch.stack([torch.block_diag(*of_group) for of_group in every])
        return dense.view(*spec.lead, spec.size, spec.size)

    def probe(self, spec: FisherSpec, factor: Tensor, count: int, with_bias: bool) -> Probe:
        """Return columns of the first and of the last block, which hold what is in it alone."""
        starts = [0, spec.size - spec.blocks[-1]]
        blocks = [matrices(factor, spec.blocks)[i].double() for i in (0, -1)]
        lead = factor.shape[:-1]
        vectors = torch.zeros(spec.size, 2, dtype=torch.float64, device=factor.device)
        kept, products = torch.zeros_like(vectors), factor.new_zeros(*lead, *vectors.shape).double()
        for number, (start, block) in enumerate(zip(starts, blocks, strict=True)):
            inside = slice(start, start + block.shape[-1])
            vectors[start, number], kept[inside, number] = 1.0, 1.0
            products[..., inside, number] = block[..., 0]
        return Probe(vectors, products, kept)

    def with_bias(self, spec: FisherSpec, joined: bool) -> FisherSpec:
        """Give the last block one row more, or one less."""
        *others, last = spec.blocks
        blocks = (*others, last + joined - spec.has_bias)
        return replace(super().with_bias(spec, joined), blocks=blocks)

    def without_bias(self, spec: FisherSpec, moment: Tensor) -> Tensor:
        """Take the last row and column of the last block away."""
        square = spec.blocks[-1] ** 2
        last = matrices(moment[..., -square:], spec.blocks[-1:])[0]
        return torch.cat([moment[..., :-square], last[..., :-1, :-1].flatten(-2)], -1)

    def add_rows(
        self,
        spec: FisherSpec,
        statistics: Statistics,
        samples: Sequence[Tensor],
        outputs: Tensor | None,
        geometry: Sequence[int],
        sum: Tensor,
    ) -> None:
        """Add the outer products of each block of the rows."""
        blocks = matrices(sum, spec.blocks)
        statistics.block_moments(samples, geometry, spec.has_bias, blocks)

    def add_to_diagonal(self, spec: FisherSpec, sum: Tensor, value: Tensor) -> None:
        """Add to the diagonal of every block."""
        # Not by `parts`: of groups its equal blocks are a copy, and what is added to that is lost.
        for block in matrices(sum, spec.blocks):
            block.diagonal(dim1=-2, dim2=-1).add_(value)

    def observation_work(self, spec: FisherSpec, rows: int) -> int:
        """Count half a square for each block."""
        return rows * sum(size**2 for size in spec.blocks) // 2

    def factor_widths(self, spec: FisherSpec) -> tuple[int, ...]:
        """Return the blocks, without the bias."""
        return (*spec.blocks[:-1], spec.blocks[-1] - spec.has_bias)


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
    # Blocks of equal memory would cut the bias off as a block of its own wherever `block_size`
    # divides the inputs (decision 13).
    sizes[-1] += has_bias
    return tuple(sizes)


def matrices(flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """View a flat factor as its blocks, `[*, b, b]` each."""
    parts = flat.split([size**2 for size in sizes], -1)
    return [part.unflatten(-1, (size, size)) for part, size in zip(parts, sizes, strict=True)]
