"""`channel_second_moment` in Triton: the kernel of `squared_sum`, over columns or over channels.

Where a channel's numbers lie side by side a channel is a group, its positions are the columns, and
these are added up too; where the channels lie side by side they are the columns.
"""

from torch import Tensor

from .squared_sum import launch_partials


def launch_channel_second_moment(x: Tensor, *, bias: bool) -> tuple[Tensor, Tensor | None]:
    """Return, of `x` `[N, C, P]`, the sum of every channel's squares and, with `bias`, its sum.

    Args:
        x: of 16 or 32 bits, any strides, `N, C, P >= 1`.
        bias: whether the numbers are summed as well as their squares.

    Returns:
        float32 `[C]`, and `[C]` or None.
    """
    _, channels, positions = x.shape
    if positions == 1 or x.stride(1) == 1:
        rows = x.transpose(1, 2).reshape(1, -1, channels)
        parts = launch_partials(rows, sums=bias, join=False)
    else:
        parts = launch_partials(x.transpose(0, 1), sums=bias, join=True)
    squares = parts.squares.sum(0).view(channels)
    return squares, None if parts.sums is None else parts.sums.sum(0).view(channels)
