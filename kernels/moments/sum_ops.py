"""Registration with torch.library of the sums: squares, channels, tokens. See `ops`."""

import torch
from torch import Tensor
from torch.library import custom_op

from ..batching import one_by_one
from ..dispatch import choose, launcher
from .rows import ACCUMULATION_DTYPE
from .sums import (
    bag_squares,
    channel_matrices,
    channel_sums,
    column_squares,
    count_tokens,
    with_count,
)


def _squared_sum(x: Tensor, bias: bool) -> Tensor:
    if choose("squared_sum", x).path == "triton":
        squares: Tensor = launcher("squared_sum", x)(x)
    else:
        squares = column_squares(x)
    return with_count(squares, x.shape[-2], bias)


def _channel_second_moment(x: Tensor, bias: bool) -> Tensor:
    if choose("channel_second_moment", x).path == "triton":
        squares, sums = launcher("channel_second_moment", x)(x, bias=bias)
    else:
        squares, sums = channel_sums(x, bias)
    return channel_matrices(squares, sums, x.shape[0] * x.shape[2])


@custom_op("sngd_kernels::squared_sum", mutates_args=())
def squared_sum(x: Tensor, bias: bool) -> Tensor:
    """Sum the squares of rows `[*, N, D]`."""
    return _squared_sum(x, bias)


@squared_sum.register_fake
def _(x: Tensor, bias: bool) -> Tensor:
    shape = (*x.shape[:-2], x.shape[-1] + int(bias))
    return x.new_empty(shape, dtype=ACCUMULATION_DTYPE[x.dtype])


@custom_op("sngd_kernels::add_squared_sum_", mutates_args=("out",))
def add_squared_sum_(out: Tensor, x: Tensor, bias: bool) -> None:
    """Add the squares of rows `[*, N, D]` to `out`."""
    out.add_(_squared_sum(x, bias))


@custom_op("sngd_kernels::channel_second_moment", mutates_args=())
def channel_second_moment(x: Tensor, bias: bool) -> Tensor:
    """Compute the moments of the channels of `x` `[N, C, P]`."""
    return _channel_second_moment(x, bias)


@channel_second_moment.register_fake
def _(x: Tensor, bias: bool) -> Tensor:
    size = 1 + int(bias)
    return x.new_empty((x.shape[1], size, size), dtype=ACCUMULATION_DTYPE[x.dtype])


@custom_op("sngd_kernels::add_channel_second_moment_", mutates_args=("out",))
def add_channel_second_moment_(out: Tensor, x: Tensor, bias: bool) -> None:
    """Add the moments of the channels of `x` `[N, C, P]` to `out`."""
    out.add_(_channel_second_moment(x, bias))


@custom_op("sngd_kernels::token_counts", mutates_args=())
def token_counts(tokens: Tensor, entries: int, padding_idx: int | None) -> Tensor:
    """Count `tokens` `[N]`, entry by entry."""
    return count_tokens(tokens, entries, padding_idx)


@token_counts.register_fake
def _(tokens: Tensor, entries: int, padding_idx: int | None) -> Tensor:
    return tokens.new_empty((entries,), dtype=torch.int64)


@custom_op("sngd_kernels::add_token_counts_", mutates_args=("out",))
def add_token_counts_(out: Tensor, tokens: Tensor, padding_idx: int | None) -> None:
    """Add the counts of `tokens` `[N]` to `out` `[V]`."""
    out.add_(count_tokens(tokens, len(out), padding_idx))


@custom_op("sngd_kernels::bag_squared_sum", mutates_args=())
def bag_squared_sum(bags: Tensor, tokens: Tensor, weights: Tensor, entries: int) -> Tensor:
    """Sum the squares of bags, entry by entry."""
    return bag_squares(bags, tokens, weights, entries)


@bag_squared_sum.register_fake
def _(bags: Tensor, tokens: Tensor, weights: Tensor, entries: int) -> Tensor:
    return weights.new_empty((entries,), dtype=ACCUMULATION_DTYPE[weights.dtype])


for _operation in (
    squared_sum,
    add_squared_sum_,
    channel_second_moment,
    add_channel_second_moment_,
    token_counts,
    add_token_counts_,
    bag_squared_sum,
):
    _operation.register_vmap(one_by_one(_operation))
