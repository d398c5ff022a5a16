"""What a forward pass returns, whatever its type: its tensors, a loss, the distance of two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sngd_compile.fisher.samples import strided

LEAVES = (str, bytes, int, float, complex, bool, type(None), type, nn.Module)
"""Types in which no output is looked for."""

WEIGHTS = 7
"""Weights of squares, one after another: no width of a layer is often a multiple."""


def floating_in(value: Any) -> list[Tensor]:
    """List the floating tensors in an output: in sequences, mappings and attributes of objects."""
    return [t for t in _tensors(value, set()) if t.is_floating_point() or t.is_complex()]


def _tensors(value: Any, met: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield strided(value)
        return
    if isinstance(value, LEAVES) or id(value) in met:
        return
    met.add(id(value))
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    for part in parts:
        yield from _tensors(part, met)


def mean_square(output: Any) -> Tensor:
    """Return the mean of the squares of all floating numbers in an output, each with a weight.

    The weights are 1/2 to 3/2, neighbours have others: behind a normalisation the plain mean is
    nearly a constant, whose gradients are rounding.

    Raises:
        TypeError: It holds no floating tensor.
    """
    found = floating_in(output)
    if not found:
        raise TypeError(f"the output, {type(output).__name__}, holds no floating tensor")
    total = torch.stack([_squares(tensor) for tensor in found]).sum()
    return total / max(1, sum(tensor.numel() for tensor in found))


def _squares(tensor: Tensor) -> Tensor:
    # In float32 or wider, since a sum of squares soon leaves float16.
    wide = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    squares = wide.to(torch.promote_types(wide.dtype, torch.float32)).square().flatten()
    weights = torch.arange(squares.numel(), device=squares.device).remainder(WEIGHTS)
    return (squares * (0.5 + weights / (WEIGHTS - 1))).sum()


def distance(found: list[Tensor], expected: list[Tensor], where_finite: bool = False) -> float:
    """Return the largest `|found - expected| / |expected|` of pairs of tensors.

    Infinity where the tensors have other shapes, or other numbers are not finite: whether one is
    NaN or infinite depends on the order of sums. With `where_finite` numbers count where both are.
    """
    if [t.shape for t in found] != [t.shape for t in expected]:
        return float("inf")
    pairs = zip(map(_real, found), map(_real, expected), strict=True)
    return max((_distance(*pair, where_finite) for pair in pairs), default=0.0)


def _real(tensor: Tensor) -> Tensor:
    wide = tensor.detach()
    return (torch.view_as_real(wide) if wide.is_complex() else wide).double()


def _distance(found: Tensor, expected: Tensor, where_finite: bool) -> float:
    finite = expected.isfinite() & found.isfinite()
    if not where_finite and bool(((expected.isfinite() | found.isfinite()) != finite).any()):
        return float("inf")
    difference = torch.dist(found[finite], expected[finite])
    size = torch.linalg.vector_norm(expected[finite])
    return float(difference / size) if difference else 0.0
