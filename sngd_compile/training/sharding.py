"""Parameters that `fully_shard` cut into rows, one part a process.

Between steps a module holds `DTensor`s, during its forward and backward pass whole tensors. What
moves with a root at a refresh is gathered, moved, and cut again: every process computes the same.
"""

from __future__ import annotations

from functools import cache
from typing import Any, overload

import torch
from torch import Tensor, nn

from sngd_compile.errors import ModelError
from sngd_compile.torch_private import is_distributing


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
    """Return the processes that train a sharded parameter; None for any other tensor.

    They see parts of one batch, those that hold copies of a part as well as those that hold others.
    """
    sharded: Any = tensor
    return _group_of_mesh(sharded.device_mesh) if is_sharded(tensor) else None


def _group_of_mesh(mesh: Any) -> Any:
    if mesh.ndim == 1:
        return mesh.get_group()
    ranks = mesh.mesh.flatten().tolist()
    world = torch.distributed.group.WORLD
    if len(ranks) == torch.distributed.get_world_size():
        return world
    return _group_of_ranks(tuple(ranks), world)


@cache
def _group_of_ranks(ranks: tuple[int, ...], world: Any) -> Any:
    """Make a group once for each world: one that was destroyed takes its groups along."""
    # Other processes, of another mesh, may not come here.
    return torch.distributed.new_group(list(ranks), use_local_synchronization=True)


def check_sharding(name: str, parameter: Tensor | None) -> None:
    """Refuse parts that are not those of `fully_shard`, whose processes see parts of one batch.

    Raises:
        ModelError: A `DTensor` is cut along several dimensions of a mesh, or along none, or
            `distribute_module` has cut it.
    """
    sharded: Any = parameter
    if not is_sharded(parameter):
        return
    *copies, part = sharded.placements
    if (
        is_distributing()
        or len(copies) > 1
        or not all(p.is_replicate() for p in copies)
        or not part.is_shard()
    ):
        raise ModelError(
            f"{name}: its parts are {tuple(sharded.placements)} on a mesh of "
            f"{sharded.device_mesh.ndim} dimensions, as tensor parallel gives them. {PARTS}"
        )


PARTS = (
    "A reconstructed weight needs whole rows of its inputs in each process, so tensor parallel is "
    "refused; nothing has been trained. Use fully_shard on a mesh of one dimension, or of two "
    "whose first holds copies, or leave the weight out with overrides"
)
"""Why, and what to do."""


def squares_of(weight: Tensor) -> float | None:
    """Return the sum of a weight's squares, which any update changes; None where it is not here."""
    if is_sharded(weight) or weight.is_meta:
        return None
    norm = torch.linalg.vector_norm(weight.detach(), dtype=torch.float64)
    return float(norm.square())
