"""The specification: each operation in its most obvious form, to compare with, not to run.

Slow and memory-hungry on purpose; nothing is checked, everything happens in the dtype of the input.
"""

import torch
from torch import Tensor
from torch.nn import functional


def second_moment_reference(x: Tensor, *, bias: bool = False) -> Tensor:
    """Multiply `[x 1]` `[N, D + 1]`, written out, by itself."""
    rows = torch.cat([x, x.new_ones(len(x), 1)], dim=1) if bias else x
    return rows.T @ rows


def unit_second_moment_reference(x: Tensor, weights: Tensor, *, bias: bool = False) -> Tensor:
    """Weigh the outer products of the rows of `[x 1]` by each column of `weights` `[N, O]`."""
    rows = torch.cat([x, x.new_ones(len(x), 1)], dim=1) if bias else x
    return torch.einsum("no,na,nb->oab", weights, rows, rows)


def sketch_reference(moment: Tensor, omega: Tensor) -> Tensor:
    """Multiply a second moment `[D, D]` by `omega` `[D, l]`; put its trace into one more row."""
    last = omega.new_zeros(1, omega.shape[1])
    last[0, 0] = moment.trace()
    return torch.cat([moment @ omega, last])


def sketch_metric_reference(moment: Tensor, omega: Tensor, damping: float) -> Tensor:
    """Write out what stands for `moment` `[D, D]`, with its damping: approximation and residual.

    The pseudo-inverse of `Omega^T G Omega` by its eigenpairs, one side each: their product would
    have entries as large as the inverse of the smallest.
    """
    (size, columns), image = omega.shape, moment @ omega
    inner = omega.T @ image
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    kept = values > 1e-13 * values[-1]
    half: Tensor = image @ vectors[:, kept] / values[kept].sqrt()
    found = half @ half.T
    residual = (moment - found).trace() / (size - columns) if columns < size else 0.0
    tail: Tensor = (residual + damping) * torch.eye(size, dtype=moment.dtype)
    return found + tail


def cholesky_inverse_reference(matrices: Tensor, damping: Tensor, *, bias: bool) -> Tensor:
    """Invert the factors of `matrices` `[B, D, D]` plus `damping` `[B]`, one after the other.

    With a bias, P moves the last coordinate to the front: `R = P^T L^-1 P`.
    """
    size = matrices.shape[-1]
    identity = torch.eye(size, dtype=matrices.dtype, device=matrices.device)
    order = identity.roll(1, 0) if bias else identity
    inverses = [
        order.T @ torch.linalg.inv(torch.linalg.cholesky(order @ damped @ order.T)) @ order
        for damped in matrices + damping[:, None, None] * identity
    ]
    return torch.stack(inverses)


def patches_reference(
    x: Tensor,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """Cut `x` `[N, C, *spatial]` into patches `[N * positions, C, *kernel_size]`.

    A convolution with one-hot weights, one output channel for each tap, copies what the tap sees.
    """
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(kernel_size) - 1]
    images, channels = x.shape[:2]
    one_hot = torch.eye(torch.Size(kernel_size).numel(), dtype=x.dtype, device=x.device)
    planes = x.reshape(images * channels, 1, *x.shape[2:])
    seen = convolve(planes, one_hot.view(-1, 1, *kernel_size), None, stride, padding, dilation)
    seen = seen.flatten(2)
    patches = seen.view(images, channels, *seen.shape[1:]).permute(0, 3, 1, 2).flatten(0, 1)
    return patches.reshape(len(patches), channels, *kernel_size)


def conv_second_moment_reference(
    x: Tensor,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    *,
    bias: bool = False,
) -> Tensor:
    """Take the second moment of every group's flattened patches, one group after the other."""
    patches = patches_reference(x, kernel_size, stride, padding, dilation)
    moments = [
        second_moment_reference(group.flatten(1), bias=bias) for group in patches.chunk(groups, 1)
    ]
    return moments[0] if groups == 1 else torch.stack(moments)


def squared_sum_reference(x: Tensor, *, bias: bool = False) -> Tensor:
    """Take the diagonals of the second moments of `x` `[N, D]` or `[groups, N, D]`."""
    if x.dim() == 3:
        return torch.stack([squared_sum_reference(group, bias=bias) for group in x])
    return second_moment_reference(x, bias=bias).diagonal()


def channel_second_moment_reference(x: Tensor, *, bias: bool = False) -> Tensor:
    """Take the second moment of every channel of `x` `[N, C, P]`, one after the other."""
    channels = x.transpose(0, 1).flatten(1)
    return torch.stack([second_moment_reference(c[:, None], bias=bias) for c in channels])


def token_counts_reference(
    tokens: Tensor, entries: int, *, padding_idx: int | None = None
) -> Tensor:
    """Add the indicators of the tokens that are no padding."""
    rows = functional.one_hot(tokens.long(), entries)
    if padding_idx is not None:
        rows[:, padding_idx] = 0
    return rows.sum(0)


def bag_squared_sum_reference(
    bags: Tensor, tokens: Tensor, weights: Tensor, entries: int
) -> Tensor:
    """Write down what every bag holds of every entry, `[B, V]`, and add the squares up."""
    rows = weights.new_zeros(int(bags.max()) + 1, entries)
    for bag, token, weight in zip(bags, tokens, weights, strict=True):
        rows[bag, token] += weight
    return squared_sum_reference(rows)
