"""Optimizer states that processes divided among themselves by parameters, as ZeRO's first stage.

A root mixes the rows of a weight with its bias, whose momenta may lie in two processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

LINEAR_STATES = ("momentum_buffer", "exp_avg")
"""Optimizer states that are linear in past steps even where none of their numbers is negative."""


@dataclass
class StateHolder:
    """What is read of an optimizer: the states of its parameters."""

    state: Any = field(default_factory=dict)


def states_of(holder: Any, parameter: Any) -> dict[str, Any]:
    """Return what an optimizer keeps of a parameter in this process, by name."""
    # ZeRO that has loaded a file says None of what lies in other processes.
    return holder.state.get(parameter) or {}


def linear_state(parameter: Any, name: str, holders: Sequence[Any]) -> Tensor | None:
    """Find the state of a parameter called `name` in this process, if it has the shape of it."""
    for holder in holders:
        if parameter is not None and parameter in holder.state:
            state = states_of(holder, parameter).get(name)
            if isinstance(state, Tensor) and state.shape == parameter.shape:
                return state
    return None


@contextmanager
def whole_states(
    weight: Tensor, bias: Tensor | None, group: Any, optimizers: Sequence[Optimizer]
) -> Iterator[Sequence[Any]]:
    """Yield who holds the states of a pair: where they are divided, what was gathered of them.

    Changes of what was gathered reach the states that lie here. Every process of the group comes
    here, or none.
    """
    # By name: importing the class takes long, and torch may be without it.
    names = (base.__name__ for optimizer in optimizers for base in type(optimizer).__mro__)
    if group is None or bias is None or "ZeroRedundancyOptimizer" not in names:
        yield optimizers
        return
    pairs = [(name, p) for name in LINEAR_STATES for p in (weight, bias)]
    held = [linear_state(parameter, name, optimizers) for name, parameter in pairs]
    # One process has a state and the others have none, so the sum is that one's.
    alike = [torch.zeros_like(p) if s is None else s for s, (_, p) in zip(held, pairs, strict=True)]
    flat = torch.cat([state.detach().flatten() for state in alike])
    torch.distributed.all_reduce(flat, group=group)
    holder = StateHolder({weight: {}, bias: {}})
    pieces = flat.split([state.numel() for state in alike])
    for (name, parameter), piece in zip(pairs, pieces, strict=True):
        holder.state[parameter][name] = piece.view(parameter.shape)
    yield [holder]
    for (name, parameter), state in zip(pairs, held, strict=True):
        if state is not None:
            state.copy_(holder.state[parameter][name])
