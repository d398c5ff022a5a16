"""All that lives in the coordinates of one root: `w'`, its gradient, what optimizers keep of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.roots.base import Change
from sngd_compile.fisher.weight_map import as_matrices
from sngd_compile.training.divided_states import LINEAR_STATES, states_of
from sngd_compile.training.remainders import completed, fit_remainders_, round_
from sngd_compile.training.sharding import held_here, put_, whole

Half = tuple[Tensor | None, Tensor | None]
"""Of a weight and of its bias; either may be missing."""


class Mapped(Protocol):
    """A weight with a Fisher layer, see `refresh.Site`."""

    @property
    def bias(self) -> Tensor | None:
        """The bias that joins, or None."""
        ...

    @property
    def fisher(self) -> FisherLayer:
        """The local Fisher layer."""
        ...


class Held(NamedTuple):
    """A pair shaped like `w'` and `b'`: where it lies, maybe in parts, and its numbers, gathered.

    One of the two may be missing, or both.
    """

    weight: Tensor | None
    bias: Tensor | None
    whole_weight: Tensor | None
    whole_bias: Tensor | None

    @classmethod
    def of(cls, weight: Tensor | None, bias: Tensor | None) -> Held:
        """Gather a pair; where it is sharded, every process comes here."""
        return cls(weight, bias, whole(weight), whole(bias))


@dataclass(frozen=True)
class Parameters:
    """`w'` and `b'`, and what their dtype does not hold of them.

    Args:
        given: The parameters; None for those that stay `w`.
        remainders: What earlier moves have rounded away, of half precision alone.
        exact: Both together, in a wider dtype where there is a remainder.
    """

    given: Half
    remainders: Half
    exact: Held

    @classmethod
    def of(cls, fisher: FisherLayer, weight: Tensor, bias: Tensor | None) -> Parameters:
        """Gather them; where they are sharded, every process comes here."""
        fit_remainders_(fisher, weight, bias)
        remainders = fisher.remainders
        exact = (completed(weight, remainders[0]), completed(bias, remainders[1]))
        return cls((weight, bias), remainders, Held.of(*exact))

    @classmethod
    def none(cls) -> Parameters:
        """Return those of a weight that stays what it is."""
        return cls((None, None), (None, None), Held.of(None, None))

    def move_(self, site: Mapped, change: Change, dtype: torch.dtype) -> None:
        """Apply `change` in `dtype` to both, and round them once."""
        move_(site, change, dtype, self.exact)
        exact = (self.exact.weight, self.exact.bias)
        for parameter, remainder, moved in zip(self.given, self.remainders, exact, strict=True):
            round_(parameter, remainder, moved)

    def whole(self) -> Half:
        """Return weight and bias, gathered, as the parameters have them: rounded."""
        exact = (self.exact.whole_weight, self.exact.whole_bias)
        pairs = zip(self.given, exact, strict=True)
        weight, bias = (None if p is None or e is None else e.to(p.dtype) for p, e in pairs)
        return weight, bias


@dataclass(frozen=True)
class Coordinates:
    """What moves with a root.

    Args:
        parameters: `w'` and `b'`.
        gradient: That of the last backward pass, or of micro-batches.
        states: What optimizers keep that is linear in `w'`.
    """

    parameters: Parameters
    gradient: Held
    states: list[Held]

    def tensors(self) -> list[Tensor | None]:
        """List all that is written to."""
        held = [
            tensor for one in (self.gradient, *self.states) for tensor in (one.weight, one.bias)
        ]
        return [*self.parameters.given, *self.parameters.remainders, *held]


def coordinates_of(
    fisher: FisherLayer, weight: Tensor, bias: Tensor | None, optimizers: Sequence[Any]
) -> Coordinates:
    """Find, and gather, what lives in the coordinates of a weight and its bias.

    Where they are sharded, every process comes here, and here alone it waits for the others.
    """
    gradient = Held.of(weight.grad, None if bias is None else bias.grad)
    states = [Held.of(*pair) for pair in _linear_states(weight, bias, optimizers)]
    return Coordinates(Parameters.of(fisher, weight, bias), gradient, states)


def move_(site: Mapped, change: Change, dtype: torch.dtype, held: Held) -> None:
    """Apply `change` in `dtype` to a pair; a missing half counts as zero. No process waits."""
    weight, bias = held.weight, held.bias
    full_weight, full_bias = held.whole_weight, held.whole_bias
    given = full_bias if full_weight is None else full_weight
    if given is None:
        return
    layout = site.fisher.layout
    # The map mixes weight and bias, so half a pair is moved as a pair with zeros.
    if full_weight is None:
        full_weight = given.new_zeros(layout.view)
    if full_bias is None and site.bias is not None:
        full_bias = given.new_zeros(layout.all_outputs)
    moved_weight, moved_bias = change(*as_matrices(layout, full_weight, full_bias, dtype))
    if weight is not None:
        _write_(weight, held.whole_weight, layout.parameter(moved_weight, weight.shape))
    if bias is not None and moved_bias is not None:
        _write_(bias, held.whole_bias, moved_bias.reshape(bias.shape))


def _write_(target: Tensor, gathered: Tensor | None, value: Tensor) -> None:
    """Write to what was gathered, and to the part of it that lies here."""
    if gathered is not None and gathered is not target:
        put_(target, gathered.copy_(value))
    else:
        target.copy_(value)


def _linear_states(
    weight: Tensor, bias: Tensor | None, optimizers: Sequence[Any]
) -> list[tuple[Tensor | None, Tensor | None]]:
    """Find the optimizer states of a weight and its bias that live in the coordinates of `w'`.

    Whatever an optimizer calls it: what has the shape of the parameter and a negative number is no
    square.
    """
    halves: list[dict[str, list[Tensor]]] = [defaultdict(list), defaultdict(list)]
    for parameter, found in zip((weight, bias), halves, strict=True):
        if parameter is None:
            continue
        # Memory moves once: `load_state_dict(other.state_dict())` lets two optimizers share theirs.
        seen = {_memory(tensor) for tensor in (parameter, parameter.grad) if tensor is not None}
        for optimizer in optimizers:
            for name, state in states_of(optimizer, parameter).items():
                if not isinstance(state, Tensor) or not _is_like(state, parameter):
                    continue
                if _memory(state) not in seen:
                    seen.add(_memory(state))
                    found[name].append(state)
    # In order, since each optimizer may have both, and each half an optimizer of its own.
    return [
        (one, other)
        for name in {**halves[0], **halves[1]}
        for one, other in zip_longest(halves[0][name], halves[1][name])
        if name in LINEAR_STATES or _is_signed(one) or _is_signed(other)
    ]


def _is_like(state: Tensor, parameter: Tensor) -> bool:
    return state.shape == parameter.shape and state.is_floating_point()


def _memory(tensor: Tensor) -> int:
    """Say where the numbers of a tensor lie; of one without any, which tensor it is."""
    return held_here(tensor).data_ptr() or id(tensor)


def _is_signed(state: Tensor | None) -> bool:
    return state is not None and bool(whole((state < 0).any()))
