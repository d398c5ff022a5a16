"""Data parallel training: what each process has seen is added up after an observed step.

Processes step together, so their observed steps fall together, and no communication is added to the
steps between. From then on every process holds the statistics of all: the checkpoint of any one is
that of the whole run.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sngd_compile.errors import ModelError
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.output_side import SAMPLES
from sngd_compile.fisher.ties import is_in_process_group
from sngd_compile.torch_private import (
    IGNORED_BY_DATA_PARALLEL,
    ORIGINAL_MODULE,
    is_joining,
)
from sngd_compile.training.sharding import group_of, is_sharded
from sngd_compile.training.transaction import agreed, by_group, interrupts_wait

LARGEST_BUCKET = 2**24
"""Numbers that are sent together: enough that a call costs little, few beside the statistics."""


def keep_out_of_broadcast(net: nn.Module) -> None:
    """Tell DistributedDataParallel to leave the Fisher layers of `net` to their own process.

    It would copy those of the first process over the others before every forward pass. Given both
    for the network and for a compiled one around it.
    """
    own = buffers_of_layers(net)
    # Statistics of the first process alone would be an average over a part of the batch; and the
    # roots are the same everywhere without being sent. What a user ignores stays ignored.
    before = [
        name for name in net.__dict__.get(IGNORED_BY_DATA_PARALLEL, ()) if "_fisher." not in name
    ]
    names = [*before, *own, *(f"{ORIGINAL_MODULE}.{name}" for name in own)]
    if names:
        net.__dict__[IGNORED_BY_DATA_PARALLEL] = names
    else:
        net.__dict__.pop(IGNORED_BY_DATA_PARALLEL, None)


def buffers_of_layers(net: nn.Module) -> list[str]:
    """Name the buffers of all Fisher layers, those that are None for a while too."""
    layers = [(name, m) for name, m in net.named_modules() if isinstance(m, FisherLayer)]
    parts = [(f"{name}.{n}".rstrip("."), m) for name, f in layers for n, m in f.named_modules()]
    return [f"{name}.{buffer}" for name, part in parts for buffer in part._buffers]


def find_groups(layers: Iterable[tuple[Tensor, FisherLayer]]) -> None:
    """Remember for each weight's Fisher layer which processes train the weight in parallel."""
    if not is_in_process_group():
        return
    # The wrapper lies outside of the network, which cannot know it: no module has its parent. This
    # walk is once per binding of an optimizer, not once a step.
    wrappers: dict[int, DistributedDataParallel] = {}
    for thing in gc.get_objects():
        # `isinstance` would ask every object of the process for `__class__`, and some raise.
        if issubclass(type(thing), DistributedDataParallel):
            wrappers |= {id(p): thing for p in thing.module.parameters()}
    for weight, layer in layers:
        wrapper = wrappers.get(id(weight))
        if is_sharded(weight):
            layer.ties.process_group = group_of(weight)
        elif wrapper is not None:
            layer.ties.process_group = wrapper.process_group
            without_join(wrapper, layer)
            if is_joining(wrapper):
                _refuse_join(layer.name)


def without_join(wrapper: DistributedDataParallel, layer: FisherLayer) -> None:
    """Let `join()` raise before it waits: a process without batches refreshes nothing."""
    wrapper.__dict__["join"] = partial(_join, layer.name)
    wrapper.__dict__["join_hook"] = partial(_refuse_join, layer.name)


def _join(
    name: str,
    divide_by_initial_world_size: bool = True,
    enable: bool = True,
    throw_on_early_termination: bool = False,
) -> AbstractContextManager[None]:
    """Stand for `DistributedDataParallel.join`, which does nothing where it is not enabled."""
    return _refuse_join(name) if enable else nullcontext()


def _refuse_join(name: str, **kwargs: Any) -> Any:
    raise ModelError(
        f"{name}: join() of DistributedDataParallel would let a process without batches leave, and "
        "the others wait for its part of the local Fishers. Nothing has begun. Give all processes "
        "the same number of batches, as DistributedSampler does; an empty batch counts as one"
    )


def close_steps_(fishers: Sequence[FisherLayer]) -> None:
    """Add up what all processes saw since the last time, then count what this step has shown.

    Every process comes here with the same layers, whether it had rows for them or not: the others
    would wait for it. So nothing that could raise in one alone may stand before this.
    """
    for group, members in by_group(fishers):
        if group is not None:
            with interrupts_wait(group):
                for several in _buckets(members):
                    _join_(several, group)
    for fisher in fishers:
        fisher.close_step_()


def _buckets(fishers: Iterable[FisherLayer]) -> Iterator[list[FisherLayer]]:
    """Yield layers, so many at a time that their sums fit into a bucket."""
    bucket: list[FisherLayer] = []
    for fisher in fishers:
        if bucket and sum(f.sum.numel() for f in (*bucket, fisher)) > LARGEST_BUCKET:
            yield bucket
            bucket = []
        bucket.append(fisher)
    yield bucket


def _join_(fishers: Sequence[FisherLayer], group: Any) -> None:
    """Let each process hold the sums and the numbers of rows of all."""
    # Sums and counts, not means: processes with other numbers of rows weigh by their rows.
    sums: list[Tensor] = []
    flat: list[_Flat] = []

    def pack() -> Tensor:
        counts = []
        for fisher in fishers:
            for sum, count in _own_parts(fisher):
                sums.append(sum)
                counts.append(count)
        flat.extend(_flattened(sums))
        return torch.stack(counts)

    counts = sum(1 if fisher.output_side is None else 2 for fisher in fishers)
    # Rows go with the word that all are there: they are few, and below 2^53.
    numbers = iter(agreed(group, fishers, counts, pack).to(torch.int64))
    totals = iter(_sent(flat, sums, group))
    processes = torch.distributed.get_world_size(group)
    for fisher in fishers:
        fisher.take_joint_(next(totals), next(numbers))
        if fisher.output_side is not None:
            fisher.output_side.take_joint_(next(totals), next(numbers), processes)


def _own_parts(fisher: FisherLayer) -> list[tuple[Tensor, Tensor]]:
    """Return what this process alone has observed: sums, and of how many rows or samples."""
    side = fisher.output_side
    output = [] if side is None else [(side.sum, side.tally[SAMPLES])]
    return [fisher.own_part(), *output]


_Flat = tuple[Tensor, list[int]]
"""Tensors that are alike, one after another, and which of all they are."""


def _flattened(parts: Sequence[Tensor]) -> list[_Flat]:
    """Copy tensors into one for each dtype and device."""
    alike: dict[tuple[torch.dtype, torch.device], list[int]] = defaultdict(list)
    for index, part in enumerate(parts):
        alike[part.dtype, part.device].append(index)
    return [
        (torch.cat([parts[index].flatten() for index in indices]), indices)
        for indices in alike.values()
    ]


def _sent(flat: Sequence[_Flat], parts: Sequence[Tensor], group: Any) -> list[Tensor]:
    """Add tensors up over all processes, a message for each dtype; return views of the sums."""
    found = list(parts)
    for numbers, indices in flat:
        torch.distributed.all_reduce(numbers, group=group)
        pieces = numbers.split([parts[index].numel() for index in indices])
        for index, piece in zip(indices, pieces, strict=True):
            found[index] = piece.view(parts[index].shape)
    return found


def all_reduced(parts: Sequence[Tensor], group: Any) -> list[Tensor]:
    """Return the sums over all processes of tensors, sent together as far as they are alike."""
    return _sent(_flattened(parts), parts, group)
