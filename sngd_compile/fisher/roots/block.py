"""The root of a factor in diagonal blocks: each block of inputs has a root of its own."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from sngd_compile.fisher.roots.base import Change, FactorRoot, Pair, Root


class BlockRoot(Root):
    """The root `R = diag(R_1, ..., R_n)` of a factor in n blocks, at least two.

    Args:
        head: Of the blocks but the last, `[groups * (n - 1), b, b]`.
        tail: Of the last block, `[*, t, t]`, which holds the bias if there is one.
        sizes: Of every block, bias included.

    Source: docs/method.md, local Fishers. Law 7 tests `R (G + damping) R^T = I`.
    """

    def __init__(self, head: FactorRoot, tail: FactorRoot, sizes: Sequence[int]) -> None:
        """Hold both."""
        super().__init__()
        self.head, self.tail = head, tail
        self.size, self.count = sizes[0], len(sizes) - 1
        self.has_bias = tail.has_bias

    @property
    def sides(self) -> list[FactorRoot]:
        """The roots that are decomposed one by one."""
        return [self.head, self.tail]

    def matrix(self) -> Tensor:
        """Return the blocks of `R` as a flat `[*, L]`, as the factor has them."""
        tail = self.tail.matrix()
        head = self.head.matrix().reshape(*tail.shape[:-2], -1)
        return torch.cat([head, tail.flatten(-2)], -1)

    def scale_(self, factor: float) -> None:
        """Become `factor R`, in all blocks."""
        for side in self.sides:
            side.scale_(factor)

    def squared_norm(self) -> Tensor:
        """Return the sum of the squares of all blocks, `[*]`, float64."""
        return self.matrix().double().square().sum(-1)

    def singular_range(self) -> tuple[Tensor, Tensor]:
        """Return the least and the largest of all blocks of a group."""
        head, tail = self.head.singular_range(), self.tail.singular_range()
        least, largest = (
            torch.cat([inner.reshape(*last.shape, self.count), last[..., None]], -1)
            for inner, last in zip(head, tail, strict=True)
        )
        return least.amin(-1), largest.amax(-1)

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` for `W' [*, O, K]`, `b' [*, O]`."""
        return self._by_block(self.head.fold, self.tail.fold, weight, bias)

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` for `W [*, O, K]`, `b [*, O]`."""
        return self._by_block(self.head.unfold, self.tail.unfold, weight, bias)

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g R^T` that `w'` has where `w` has `g`."""
        return self._by_block(self.head.to_prime, self.tail.to_prime, weight, bias)

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g' R^-T` that `w` has where `w'` has `g'`."""
        return self._by_block(self.head.from_prime, self.tail.from_prime, weight, bias)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W' (R x~)` for rows `[N, K]`: the activation side."""
        cut = self.size * self.count
        # `R x` of rows is `x R^T`, the map of a gradient.
        whitened = self._in_head(self.head.to_prime, rows[:, :cut])
        rest = self.tail.linear(rows[:, cut:], weight[:, cut:], bias)
        return F.linear(whitened, weight[:, :cut]) + rest

    def _by_block(self, head: Change, tail: Change, weight: Tensor, bias: Tensor | None) -> Pair:
        """Apply a map to the columns of every block."""
        cut = self.size * self.count
        last, changed_bias = tail(weight[..., cut:].contiguous(), bias)
        return torch.cat([self._in_head(head, weight[..., :cut]), last], -1), changed_bias

    def _in_head(self, change: Change, columns: Tensor) -> Tensor:
        """Apply a map to `[*, O, (n - 1) b]`, block by block."""
        # vmap, by which a batch of gradients comes, has rules for `reshape` alone.
        blocks = columns.reshape(*columns.shape[:-1], self.count, self.size).movedim(-2, -3)
        count = prod(blocks.shape[:-2])  # of no rows at all, -1 would be any number
        changed, _ = change(blocks.reshape(count, *blocks.shape[-2:]), None)
        return changed.view(blocks.shape).movedim(-3, -2).reshape(columns.shape)
