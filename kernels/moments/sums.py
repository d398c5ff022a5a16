"""Sums of squares, of channels and of tokens with PyTorch's own operations: the CPU path.

What the kernels sum is finished here as well.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import KernelValueError
from .rows import ACCUMULATION_DTYPE


def column_squares(x: Tensor) -> Tensor:
    """Return the sum of the squares of rows `[*, N, D]`, `[*, D]`."""
    squares: Tensor = x.to(ACCUMULATION_DTYPE[x.dtype]).square().sum(-2)
    return squares


def with_count(squares: Tensor, count: int, bias: bool) -> Tensor:
    """Append the number of rows, the sum of the squares of the column of ones, if there is one."""
    return functional.pad(squares, (0, 1), value=float(count)) if bias else squares


def channel_sums(x: Tensor, bias: bool) -> tuple[Tensor, Tensor | None]:
    """Return, of `x` `[N, C, P]`, the sum of every channel's squares and, with a bias, its sum."""
    wide = x.to(ACCUMULATION_DTYPE[x.dtype])
    if x.shape[2] > 1:
        # A CPU takes five to twenty times as long for an einsum or a sum over two axes of squares,
        # and this way no squares are stored.
        squares = torch.linalg.vector_norm(wide, dim=2).square().sum(0)
    else:
        squares = wide.square().sum((0, 2))
    return squares, wide.sum((0, 2)) if bias else None


def channel_matrices(squares: Tensor, sums: Tensor | None, count: int) -> Tensor:
    """Lay the sums of the channels `[C]` out as moments, `[C, 1, 1]` or `[C, 2, 2]`."""
    if sums is None:
        return squares[:, None, None]
    counts = torch.full_like(sums, count)
    return torch.stack([squares, sums, sums, counts], -1).view(-1, 2, 2)


def count_tokens(tokens: Tensor, entries: int, padding_idx: int | None) -> Tensor:
    """Return how often each of `entries` is among `tokens`, int64; the padding counts nothing."""
    if tokens.device.type == "cpu":
        # Looked at before: one beyond the entries would make the count longer, without an error.
        counts = torch.bincount(_within(tokens, entries), minlength=entries)
    else:
        counts = scattered_counts(tokens, entries)
    if padding_idx is not None:
        counts[padding_idx] = 0
    return counts


def scattered_counts(tokens: Tensor, entries: int) -> Tensor:
    """Count without waiting for the device, as `bincount` does for the largest token."""
    counts = torch.zeros(entries, dtype=torch.int64, device=tokens.device)
    return counts.scatter_add_(0, tokens.long(), torch.ones_like(tokens, dtype=torch.int64))


def bag_squares(bags: Tensor, tokens: Tensor, weights: Tensor, entries: int) -> Tensor:
    """Return, for each of `entries`, the sum over bags of what a bag holds of it, squared."""
    wide = weights.to(ACCUMULATION_DTYPE[weights.dtype])
    # int64 before the product: of int32 bags it would wrap around without a word.
    pairs = bags.long() * entries + tokens
    places, of_place = torch.unique(pairs, return_inverse=True)
    held = wide.new_zeros(len(places)).index_add_(0, of_place, wide)
    return wide.new_zeros(entries).index_add_(0, places % entries, held.square())


def _within(tokens: Tensor, entries: int) -> Tensor:
    """Return the tokens, all of which are entries.

    Raises:
        KernelValueError: One is none.
    """
    if tokens.numel():
        least, largest = tokens.aminmax()
        wrong = int(least) if least < 0 else int(largest)
        if not 0 <= wrong < entries:
            raise KernelValueError(
                f"tokens hold {wrong}; expected entries in [0, {entries}): look for where it is "
                "looked up"
            )
    return tokens
