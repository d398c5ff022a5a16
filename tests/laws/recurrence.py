"""LSTM, GRU and RNN written out, one sequence and one step at a time; they know no library."""

from collections import defaultdict

import torch
from torch import Tensor, nn

Rows = dict[str, list[Tensor]]


def step(layer: nn.Module, end: str, x: Tensor, state: tuple[Tensor, ...], rows: Rows):
    """Make one step of one sequence; return `h` and the other states, and keep what met whom."""
    weights = {
        part: getattr(layer, f"weight_{part}{end}").detach()
        for part in ("ih", "hh", "hr")
        if hasattr(layer, f"weight_{part}{end}")
    }
    biases = {
        part: getattr(layer, f"bias_{part}{end}").detach() if layer.bias else 0.0
        for part in ("ih", "hh")
    }
    h = state[0]
    rows[f"weight_ih{end}"].append(x)
    rows[f"weight_hh{end}"].append(h)
    given, kept = weights["ih"] @ x + biases["ih"], weights["hh"] @ h + biases["hh"]
    if isinstance(layer, nn.LSTM | nn.LSTMCell):
        i, f, g, o = (given + kept).chunk(4)
        cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * cell.tanh()
        if "hr" in weights:
            rows[f"weight_hr{end}"].append(h)
            h = weights["hr"] @ h
        return h, cell
    if isinstance(layer, nn.GRU | nn.GRUCell):
        (ri, zi, ni), (rh, zh, nh) = given.chunk(3), kept.chunk(3)
        new = (ni + (ri + rh).sigmoid() * nh).tanh()
        z = (zi + zh).sigmoid()
        return ((1 - z) * new + z * h,)
    return ((given + kept).tanh() if layer.nonlinearity == "tanh" else (given + kept).relu(),)


def run(
    layer: nn.Module, sequences: list[Tensor], first: tuple[Tensor, ...] | None = None
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Run all layers and directions over sequences `[T, K]` of lengths that do not grow.

    Args:
        layer: The layer; it drops nothing out.
        sequences: One input each.
        first: States before the first step, `[layers * directions, N, H]`; None for zeros.

    Returns:
        Rows of every weight, those of one step together; the outputs of each sequence.
    """
    rows: dict[str, list[list[Tensor]]] = defaultdict(list)
    directions = 1 + layer.bidirectional
    wide = getattr(layer, "proj_size", 0) or layer.hidden_size
    for index in range(layer.num_layers):
        outputs: list[list[Tensor]] = [[] for _ in sequences]
        for direction in range(directions):
            end = f"_l{index}" + "_reverse" * direction
            for n, x in enumerate(sequences):
                place = index * directions + direction
                if first is None:
                    state = (x.new_zeros(wide), x.new_zeros(layer.hidden_size))
                else:
                    state = tuple(s[place, n] for s in first)
                met: Rows = defaultdict(list)
                made = []
                for value in x.flip(0) if direction else x:
                    state = step(layer, end, value, state, met)
                    made.append(state[0])
                outputs[n].append(torch.stack(made[::-1] if direction else made))
                for name, values in met.items():
                    rows[name].append(values[::-1] if direction else values)
        sequences = [torch.cat(parts, -1) for parts in outputs]
    return {name: by_step(values) for name, values in rows.items()}, sequences


def by_step(values: list[list[Tensor]]) -> Tensor:
    """Order the rows of several sequences by step."""
    steps = range(max(len(sequence) for sequence in values))
    return torch.stack([s[t] for t in steps for s in values if t < len(s)])
