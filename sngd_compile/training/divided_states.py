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

from sngd_compile.training.data_parallel import all_reduced

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
    pairs: Sequence[tuple[Tensor, Tensor | None]], group: Any, optimizers: Sequence[Optimizer]
) -> Iterator[Sequence[Any]]:
    """Yield who holds the states of weights and biases: where they are divided, what was gathered.

    Changes of what was gathered reach the states that lie here, unless the block raises. Every
    process of the group comes here, or none.
    """
    # By name: importing the class takes long, and torch may be without it.
    names = (base.__name__ for optimizer in optimizers for base in type(optimizer).__mro__)
    joined = [p for weight, bias in pairs if bias is not None for p in (weight, bias)]
    if group is None or not joined or "ZeroRedundancyOptimizer" not in names:
        yield optimizers
        return
    wanted = [(name, parameter) for name in LINEAR_STATES for parameter in joined]
    held = [linear_state(parameter, name, optimizers) for name, parameter in wanted]
    # One process has a state and the others have none, so the sum is that one's.
    alike = [
        torch.zeros_like(p) if s is None else s for s, (_, p) in zip(held, wanted, strict=True)
    ]
    found = all_reduced(alike, group)
    holder = StateHolder({parameter: {} for parameter in joined})
    for (name, parameter), whole in zip(wanted, found, strict=True):
        holder.state[parameter][name] = whole
    # Of what has no bias that joins, each part lies in one process, which moves it alone.
    alone = [StateHolder(_others(optimizer, holder)) for optimizer in optimizers]
    yield [holder, *alone]
    for (name, parameter), state in zip(wanted, held, strict=True):
        if state is not None:
            state.copy_(holder.state[parameter][name])


def _others(optimizer: Optimizer, holder: StateHolder) -> dict[Any, Any]:
    return {p: states for p, states in optimizer.state.items() if p not in holder.state}
