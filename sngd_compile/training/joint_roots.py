"""The next roots of weights that several processes train: each is found by one, and sent to all.

So a refresh takes the time of a share of the decompositions, and the roots are equal to the bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.next_roots import NextRoot, next_roots
from sngd_compile.fisher.weight_map import filled_root
from sngd_compile.training.transaction import Kept, agreed, all_or_nothing, by_group
from sngd_compile.training.warnings import warn_of_outliers, warn_of_rejected

DTYPES = (torch.float32, torch.float64)

STATE, WIDE, GAIN, DAMPINGS, ENTRIES = 0, 1, 2, 3, 5
"""What is said of each layer: whether it has a root, which buffers are wide, its gain, and the
dampings."""

ROOTLESS, FOUND = 1.0, 2.0  # of STATE; 0 where nothing was observed


def owners_of(layers: Sequence[FisherLayer], processes: int) -> list[int]:
    """Share decompositions out: the largest first, each to the process that has least to do.

    Args:
        layers: Those that get new roots, in the order of the optimizer.
        processes: How many there are.

    Returns:
        For each layer the number of its process.
    """
    works = [kind_of(layer.spec).root_work(layer.spec) for layer in layers]
    owners, busy = [0] * len(layers), [0] * processes
    for index in sorted(range(len(layers)), key=works.__getitem__, reverse=True):
        owners[index] = busy.index(min(busy))
        busy[owners[index]] += max(1, works[index])
    return owners


def next_joint_roots(
    layers: Sequence[FisherLayer], group: Any
) -> dict[FisherLayer, NextRoot | None]:
    """Absorb what was observed, and decompose the damped factors.

    Args:
        layers: Of one group of processes, whose sums are joint.
        group: The processes; None for this one alone.

    Returns:
        Of each layer that had rows the next root; None where there is none, see `next_roots`.

    Raises:
        SngdError: Another process has failed.
    """
    if group is None:
        due = _absorbed_(layers)
        return dict(zip(due, next_roots(due), strict=True))
    share = _Share(layers, group)
    told = agreed(group, layers, ENTRIES * len(layers), share.find, largest=True)
    share.hear(told.tolist())
    # Once more, since there must be room for what the others send.
    agreed(group, layers, 0, share.make_room)
    return share.exchange()


_Place = tuple[int, torch.dtype]
"""A message: which process sends it, and the dtype of its numbers."""


class _Share:
    """What one process finds for all, and what it gets of them."""

    def __init__(self, layers: Sequence[FisherLayer], group: Any) -> None:
        self.layers, self.group = layers, group
        self.rank = torch.distributed.get_rank(group)
        self.owners: dict[FisherLayer, int] = {}
        self.own: dict[FisherLayer, NextRoot | None] = {}
        self.told: dict[FisherLayer, list[float]] = {}
        self.flat: dict[_Place, Tensor] = {}

    def find(self) -> Tensor:
        """Absorb everything, and decompose the share of this process; say what came out."""
        due = _absorbed_(self.layers)
        processes = torch.distributed.get_world_size(self.group)
        self.owners = dict(zip(due, owners_of(due, processes), strict=True))
        mine = [layer for layer in due if self.owners[layer] == self.rank]
        self.own = dict(zip(mine, next_roots(mine), strict=True))
        said = [number for layer in self.layers for number in self._said_of(layer)]
        return torch.tensor(said, dtype=torch.float64)

    def _said_of(self, layer: FisherLayer) -> list[float]:
        if layer not in self.own:
            return [0.0] * ENTRIES
        found = self.own[layer]
        if found is None:
            return [ROOTLESS, *[0.0] * (ENTRIES - 1)]
        # Two sides may have two dtypes: a bit for each buffer.
        wide = sum(
            2**i for i, buffer in enumerate(found.root.buffers()) if buffer.dtype == DTYPES[1]
        )
        return [FOUND, float(wide), found.gain, found.dampings[0], found.dampings[-1]]

    def hear(self, told: Sequence[float]) -> None:
        """Take what all have said."""
        for index, layer in enumerate(self.layers):
            if layer in self.owners:
                self.told[layer] = list(told[ENTRIES * index : ENTRIES * (index + 1)])

    def make_room(self) -> Tensor:
        """Lay out one message for each process and dtype; write to it what was found here."""
        pieces: dict[_Place, list[Tensor]] = defaultdict(list)
        for layer in self._with_roots():
            found = self.own.get(layer)
            root = layer.root_buffers if found is None else found.root
            for place, buffer in zip(self._places(layer), root.buffers(), strict=True):
                pieces[place].append(buffer)
        for (owner, dtype), parts in pieces.items():
            size = sum(part.numel() for part in parts)
            numbers = torch.empty(size, dtype=dtype, device=parts[0].device)
            if owner == self.rank:
                torch.cat([part.flatten() for part in parts], out=numbers)
            self.flat[owner, dtype] = numbers
        return torch.empty(0)

    def exchange(self) -> dict[FisherLayer, NextRoot | None]:
        """Send and receive all roots."""
        waits = [
            torch.distributed.broadcast(numbers, group=self.group, group_src=owner, async_op=True)
            for (owner, _), numbers in self.flat.items()
        ]
        for wait in waits:
            wait.wait()
        return {
            layer: self._received(layer) if told[STATE] == FOUND else None
            for layer, told in self.told.items()
        }

    def _received(self, layer: FisherLayer) -> NextRoot:
        """Take the next root of a message: the process that has found it too, so that all agree."""
        buffers = []
        for place, own in zip(self._places(layer), layer.root_buffers.buffers(), strict=True):
            numbers = self.flat[place]
            buffers.append(numbers[: own.numel()].view(own.shape))
            self.flat[place] = numbers[own.numel() :]
        root = filled_root(layer.spec, layer.spec.has_bias, buffers)
        told = self.told[layer]
        return NextRoot(root, tuple(told[DAMPINGS:]), told[GAIN])

    def _with_roots(self) -> list[FisherLayer]:
        return [layer for layer, told in self.told.items() if told[STATE] == FOUND]

    def _places(self, layer: FisherLayer) -> list[_Place]:
        """Say in which messages the buffers of a root are."""
        wide, number = int(self.told[layer][WIDE]), len(list(layer.root_buffers.buffers()))
        return [(self.owners[layer], DTYPES[wide >> index & 1]) for index in range(number)]


def _absorbed_(layers: Sequence[FisherLayer]) -> list[FisherLayer]:
    """Move the sums into the factors; return the layers that had rows."""
    due = []
    for layer in layers:
        with all_or_nothing(_written_by_absorbing(layer)):
            if layer.absorb_():
                due.append(layer)
    warn_of_rejected(layers)
    warn_of_outliers(due)
    return due


def _written_by_absorbing(layer: FisherLayer) -> list[Tensor]:
    """List what adding up and absorbing the sums write to."""
    others = {id(buffer) for buffer in (*layer.root_buffers.buffers(), *layer.remainders)}
    return [buffer for buffer in layer.buffers() if id(buffer) not in others]


class KeptStatistics:
    """The statistics of a layer before they are absorbed."""

    def __init__(self, layer: FisherLayer) -> None:
        self.layer, self.kept = layer, Kept(_written_by_absorbing(layer))
        self.joint = layer.joint_sum, layer.joint_rows
        self.steps, self.outlier = layer.schedule.observed_steps, layer.outlier

    def restore_(self) -> None:
        """Have them again."""
        self.kept.restore_()
        self.layer.joint_sum, self.layer.joint_rows = self.joint
        self.layer.schedule.observed_steps, self.layer.outlier = self.steps, self.outlier


def sent_bytes(layers: Iterable[FisherLayer]) -> tuple[int, ...]:
    """Count what each process gives to the messages of a refresh and the observed steps before it.

    Args:
        layers: Of a network.

    Returns:
        By the number of the process in its group, in bytes, on average where observed steps and
        refreshes do not fall together; () without a group.
    """
    found: list[float] = []
    for group, members in by_group(layers):
        if group is not None:
            processes = torch.distributed.get_world_size(group)
            found += [0.0] * (processes - len(found))
            said = 8 * ((ENTRIES + 1) * len(members) + 4) + sum(map(_statistics_bytes, members))
            for process in range(processes):
                found[process] += said
            for layer, owner in zip(members, owners_of(members, processes), strict=True):
                found[owner] += _root_bytes(layer)
    return tuple(map(round, found))


def _statistics_bytes(layer: FisherLayer) -> float:
    """Count the sums, with the number of their rows, that are sent between two refreshes."""
    sums = [layer.sum, *([] if layer.output_side is None else [layer.output_side.sum])]
    once = sum(numbers.nbytes + 8 for numbers in sums)
    return once * layer.config.refresh_every / layer.config.observe_every


def _root_bytes(layer: FisherLayer) -> int:
    strength = kind_of(layer.spec).strength(layer.spec, layer.factor, layer.config)
    dtype = layer.spec.dtype if strength is None else strength[1]
    numbers = sum(buffer.numel() for buffer in layer.root_buffers.buffers())
    return numbers * dtype.itemsize
