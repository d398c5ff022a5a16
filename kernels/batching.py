"""Rules for `torch.vmap`: one call for each entry of the mapped axis, or one call for all."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Rule = Callable[..., tuple[Any, Any]]


def one_by_one(operation: Callable[..., Any]) -> Rule:
    """Call `operation` on each entry of the mapped axis, and stack what it returns."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        entries = [
            operation(
                *(_entry(argument, dim, entry) for argument, dim in zip(args, in_dims, strict=True))
            )
            for entry in range(info.batch_size)
        ]
        if entries[0] is None:  # it changed its argument
            return None, None
        return torch.stack(entries), 0

    return rule


def _entry(argument: Any, dim: Any, entry: int) -> Any:
    """Return what one entry of the mapped axis is given; of a list of tensors, each of them."""
    if isinstance(dim, (list, tuple)):
        return [_entry(one, of_one, entry) for one, of_one in zip(argument, dim, strict=True)]
    return argument.select(dim, entry) if isinstance(dim, int) else argument


def together(operation: Callable[..., Any]) -> Rule:
    """Call `operation`, whose tensors begin with one batch axis, once on both axes flattened."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        flat = [
            _flat(argument, dim, info.batch_size) if isinstance(argument, Tensor) else argument
            for argument, dim in zip(args, in_dims, strict=True)
        ]
        results = tuple(
            result.unflatten(0, (info.batch_size, len(result) // info.batch_size))
            for result in operation(*flat)
        )
        return results, (0,) * len(results)

    return rule


def _flat(tensor: Tensor, dim: int | None, count: int) -> Tensor:
    """Merge the mapped axis with the first one of `tensor`."""
    mapped = tensor.expand(count, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return mapped.flatten(0, 1)
