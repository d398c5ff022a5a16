"""Parameters that `fully_shard` cut into rows, one part a process.

Between steps a module holds `DTensor`s, during its forward and backward pass whole tensors. What
moves with a root at a refresh is gathered, moved, and cut again: every process computes the same.
"""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor, nn

from sngd_compile.errors import ModelError


def is_sharded(tensor: Tensor | None) -> bool:
    """Say whether this is a `DTensor`, without importing what makes them."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "placements")


def sharded_name(model: nn.Module) -> str | None:
    """Name a parameter of a model that is sharded; None where none is."""
    return next((name for name, p in model.named_parameters() if is_sharded(p)), None)


@overload
def whole(tensor: Tensor) -> Tensor: ...
@overload
def whole(tensor: Tensor | None) -> Tensor | None: ...
def whole(tensor: Tensor | None) -> Tensor | None:
    """Gather a sharded tensor from all processes; anything else as it is."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    gathered: Tensor = sharded.full_tensor()
    return gathered


def held_here(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this process holds; anything else as it is."""
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor


@torch.no_grad()
def put_(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded: each process keeps its part."""
    if not is_sharded(target):
        target.copy_(value)
        return
    sharded: Any = target
    replicated = type(sharded).from_local(value.to(target.dtype), sharded.device_mesh)
    target.copy_(replicated.redistribute(sharded.device_mesh, sharded.placements))


def group_of(tensor: Tensor) -> Any:
    """Return the processes that share a sharded parameter; None for any other tensor."""
    sharded: Any = tensor
    return sharded.device_mesh.get_group() if is_sharded(tensor) else None


def check_mesh(name: str, parameter: Tensor | None) -> None:
    """Refuse to be sharded over several dimensions, whose processes see other things.

    Raises:
        ModelError: The mesh of a `DTensor` has more than one dimension.
    """
    sharded: Any = parameter
    if is_sharded(parameter) and sharded.device_mesh.ndim > 1:
        raise ModelError(
            f"{name}: sharded over a mesh of {sharded.device_mesh.ndim} dimensions; a "
            "reconstructed weight needs fully_shard on a mesh of one, "
            "init_device_mesh(device, (n,))"
        )


def squares_of(weight: Tensor) -> float | None:
    """Return the sum of a weight's squares, which any update changes; None where it is not here."""
    if is_sharded(weight) or weight.is_meta:
        return None
    norm = torch.linalg.vector_norm(weight.detach(), dtype=torch.float64)
    return float(norm.square())
