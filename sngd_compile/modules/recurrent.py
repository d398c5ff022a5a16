"""LSTM, GRU, RNN and their cells: input-to-hidden, hidden-to-hidden and projection weights.

The fused functions run as they are, on folded weights. Where a step is observed they run layer by
layer, so that the inputs of every layer and the states between steps can be seen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sngd_compile.layout import Layout
from sngd_compile.modules.folded_weight import FoldedWeight, show
from sngd_compile.modules.fused_recurrence import fused
from sngd_compile.modules.members import Members, register_members
from sngd_compile.rules import Planned, register_structure
from sngd_compile.rules.interception import register_composite
from sngd_compile.torch_private import (
    FLAT_REFERENCES,
    FLAT_WEIGHTS,
    INIT_FLAT_WEIGHTS,
    admit_to_dynamo,
    flat_names,
)

_PADDED = inspect.signature(
    lambda input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first: (
        ...
    )
)
_PACKED = inspect.signature(
    lambda data, batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional: ...
)


@register_structure(nn.RNNBase, nn.RNNCellBase)
def weights_of(module: nn.Module) -> dict[str, Planned | str]:
    """Describe the weights of a recurrent layer or cell: each joins the bias of its own name.

    Rows of `weight_ih` are the layer's inputs, of `weight_hh` the states `h_(t-1)`, of `weight_hr`
    the states before they are projected.

    Source: docs/method.md, local Fishers.
    """
    described: dict[str, Planned | str] = {}
    for name, weight in module._parameters.items():
        if weight is not None and weight.dim() == 2:
            bias = name.replace("weight", "bias", 1)
            joined = bias if module._parameters.get(bias) is not None else None
            described[name] = Planned("linear", Layout.plain(weight.shape), joined)
    return described


@dataclass(frozen=True)
class _Stack:
    """One call of a fused function, its arguments by name, steps one after the other.

    Args:
        function: `lstm`, `gru`, `rnn_tanh` or `rnn_relu` of torch.
        data: Inputs, time first `[T, N, K]`, or packed `[S, K]`.
        batch_sizes: Of packed inputs, sequences that reach each step; None otherwise.
        states: `h_0`, and of an LSTM `c_0`, `[layers * directions, N, H]` each.
        params: Weights and biases of all layers and directions, in order.
        options: Whether there are biases, trains, is bidirectional.
    """

    function: str
    data: Tensor
    batch_sizes: Tensor | None
    states: tuple[Tensor, ...]
    params: Sequence[Tensor]
    biases: bool
    train: bool
    bidirectional: bool

    @property
    def sizes(self) -> list[int]:
        """Sequences at each step."""
        if self.batch_sizes is not None:
            return [int(size) for size in self.batch_sizes]
        return [self.data.shape[1]] * self.data.shape[0]

    def call(self) -> tuple[Tensor, ...]:
        """Run one layer by the fused function: its outputs, then its last states."""
        given = (self.function, self.data, self.batch_sizes, self.states, self.params)
        options = self.biases, self.train, self.bidirectional
        if torch.compiler.is_compiling():
            return tuple(torch.ops.sngd.recurrent_layer(*given, *options))
        return fused(*given, *options)

    def layer(self, data: Tensor, index: int, layers: int) -> _Stack:
        """Take one layer out of the stack."""
        directions = 1 + self.bidirectional
        each = len(self.params) // layers
        states = [s[index * directions : (index + 1) * directions] for s in self.states]
        own = self.params[index * each : (index + 1) * each]
        return replace(self, data=data, states=tuple(states), params=own)

    def show(self, output: Tensor) -> None:
        """Let the weights of one layer observe their inputs."""
        with torch.no_grad():
            self._show(output)

    def _show(self, output: Tensor) -> None:
        directions = 1 + self.bidirectional
        each = len(self.params) // directions
        outputs = output.chunk(directions, -1)
        for direction, hidden in enumerate(outputs):
            own = self.params[direction * each : (direction + 1) * each]
            start = [state[direction] for state in self.states]
            before = self._before(hidden, start[0], direction == 1)
            show(own[0], self.data)
            show(own[1], before)
            # An odd number: two weights, two biases or none, and `weight_hr` behind them.
            if each % 2 and isinstance(own[-1], FoldedWeight):
                show(own[-1], self._unprojected(own, before, start[1], direction == 1))

    def _before(self, made: Tensor, first: Tensor, reverse: bool) -> Tensor:
        """Return what stood before every step, `[S, H]`, given what every step made."""
        if self.batch_sizes is not None:
            return _previous(made, first, self.sizes, reverse)
        steps = [made[1:], first[None]] if reverse else [first[None], made[:-1]]
        return torch.cat(steps).flatten(0, 1)

    def _unprojected(
        self, own: Sequence[Tensor], before: Tensor, cell: Tensor, reverse: bool
    ) -> Tensor:
        """Return an LSTM's states before their projection, `[S, H]`."""
        biases = own[2:4] if self.biases else (None, None)
        flat = self.data.reshape(-1, self.data.shape[-1])
        gates = F.linear(flat, own[0], biases[0]) + F.linear(before, own[1], biases[1])
        enter, keep, new, leave = gates.chunk(4, -1)
        added, kept = enter.sigmoid() * new.tanh(), keep.sigmoid()
        # The fused function returns what is projected, and the rows of `weight_hr` are what comes
        # before: so the gates are computed once more, in observed steps only.
        cells = []

        def step(now: Tensor, start: int, stop: int) -> Tensor:
            return kept[start:stop] * now + added[start:stop]

        for _, now in _scan(step, cell, self.sizes, reverse):
            cells.append(now)
        cells = cells[::-1] if reverse else cells
        return leave.sigmoid() * torch.cat(cells).tanh()


def _previous(steps: Tensor, first: Tensor, sizes: Sequence[int], reverse: bool) -> Tensor:
    """Return what stood before every step, `[S, H]`, given what every step made, `[S, H]`."""
    pairs = _scan(lambda _, start, stop: steps[start:stop], first, sizes, reverse)
    before = [old for old, _ in pairs]
    return torch.cat(before[::-1] if reverse else before)


def _scan(
    step: Callable[[Tensor, int, int], Tensor],
    state: Tensor,
    sizes: Sequence[int],
    reverse: bool,
) -> list[tuple[Tensor, Tensor]]:
    """Go through the steps; list the state before and after each, of the sequences that are in it.

    Sequences are sorted by length, so those of a step are the first ones. Backwards in time a
    sequence starts from its first state where it ends.
    """
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    pairs = []
    for index in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        count = sizes[index]
        before = state[:count]
        after = step(before, starts[index], starts[index] + count)
        pairs.append((before, after))
        state = after if count == len(state) else torch.cat([after, state[count:]])
    return pairs


def _run_layers(function: str, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """Run a stack of layers one by one, with dropout between, as the fused function does.

    On a CPU the random numbers are the same; cuDNN draws those of its dropout by itself.
    """
    # Both overloads have one name: fourth comes the list of weights in one, a bool in the other.
    packed = "batch_sizes" in kwargs or (len(args) > 3 and isinstance(args[3], list | tuple))
    given = (_PACKED if packed else _PADDED).bind(*args, **kwargs).arguments
    states = given["hx"] if function == "lstm" else (given["hx"],)
    data = given["data"] if packed else given["input"]
    batch_first = not packed and given["batch_first"]
    data = data.transpose(0, 1) if batch_first else data
    sizes = given.get("batch_sizes")
    options = given["has_biases"], given["train"], given["bidirectional"]
    stack = _Stack(function, data, sizes, tuple(states), given["params"], *options)
    layers, last = given["num_layers"], []
    # Layer by layer, because the fused function shows no state between two of them.
    for index in range(layers):
        layer = stack.layer(data, index, layers)
        data, *final = layer.call()
        layer.show(data)
        last.append(final)
        if given["dropout"] and given["train"] and index < layers - 1:
            data = F.dropout(data, given["dropout"])
    data = data.transpose(0, 1) if batch_first else data
    return (data, *(torch.cat(finals) for finals in zip(*last, strict=True)))


def _run_cell(
    function: Callable[..., Any], input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, *biases: Any
) -> Any:
    """Run one step of a cell and observe its input and its state."""
    result = function(input, hx, w_ih, w_hh, *biases)
    show(w_ih, input)
    show(w_hh, hx[0] if function is torch.lstm_cell else hx)
    return result


for _name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
    register_composite(getattr(torch, _name))(partial(_run_layers, _name))
for _cell in (torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell):
    register_composite(_cell)(partial(_run_cell, _cell))


def _flat_weights(module: Any) -> list[Tensor | None]:
    return [getattr(module, name, None) for name in flat_names(module)]


def _no_references(module: Any) -> list[None]:
    return [None] * len(flat_names(module))


def _keep_nothing(module: nn.Module, value: Any) -> None:
    """Take no list of parameters, which are `w'`; copying asks that the references exist."""
    module.__dict__[FLAT_REFERENCES] = []


def _prepare(module: nn.Module) -> None:
    del module.__dict__[FLAT_WEIGHTS]
    _keep_nothing(module, None)


# `flatten_parameters` would rewrite the flat weights in place.
register_members(
    nn.RNNBase,
    Members(
        {
            FLAT_WEIGHTS: property(_flat_weights, _keep_nothing, doc="The folded weights."),
            FLAT_REFERENCES: property(_no_references, _keep_nothing),
            INIT_FLAT_WEIGHTS: lambda module: _keep_nothing(module, None),
            "flatten_parameters": lambda module: None,
        },
        prepare=_prepare,
        restore=lambda module: getattr(module, INIT_FLAT_WEIGHTS)(),
        on_class=admit_to_dynamo,
    ),
)
