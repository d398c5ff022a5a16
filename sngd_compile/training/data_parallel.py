"""Data parallel training: what each process has seen is added up at a refresh, and only there.

Processes step together, so their refreshes fall together. No communication is added to the steps
between.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sngd_compile.fisher.layer import ROWS, FisherLayer
from sngd_compile.fisher.output_side import STEPS
from sngd_compile.torch_private import IGNORED_BY_DATA_PARALLEL, ORIGINAL_MODULE
from sngd_compile.training.sharding import group_of, is_in_process_group, is_sharded


def keep_out_of_broadcast(net: nn.Module) -> None:
    """Tell DistributedDataParallel to leave the Fisher layers of `net` to their own process.

    It would copy those of the first process over the others before every forward pass. Given both
    for the network and for a compiled one around it.
    """
    layers = [(name, m) for name, m in net.named_modules() if isinstance(m, FisherLayer)]
    own = [f"{name}.{buffer}" for name, layer in layers for buffer, _ in layer.named_buffers()]
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


def find_groups(layers: Iterable[tuple[Tensor, FisherLayer]]) -> None:
    """Remember for each weight's Fisher layer which processes train the weight in parallel."""
    if not is_in_process_group():
        return
    # The wrapper lies outside of the network, which cannot know it: no module has its parent. This
    # walk is once per binding of an optimizer, not once a step.
    groups: dict[int, Any] = {}
    for thing in gc.get_objects():
        # `isinstance` would ask every object of the process for `__class__`, and some raise.
        if issubclass(type(thing), DistributedDataParallel):
            groups |= {id(p): thing.process_group for p in thing.module.parameters()}
    for weight, layer in layers:
        if is_sharded(weight):
            layer.ties.process_group = group_of(weight)
        elif id(weight) in groups:
            layer.ties.process_group = groups[id(weight)]


def all_reduce_(fisher: FisherLayer) -> None:
    """Add the sums and the rows of all processes that train the weight in parallel."""
    group = fisher.ties.process_group
    if group is None:
        return
    _all_reduce_(fisher.sum, fisher.tally[ROWS : ROWS + 1], group)
    if fisher.output_side is not None:
        _all_reduce_(fisher.output_side.total, fisher.output_side.tally[STEPS : STEPS + 1], group)


def _all_reduce_(sum: Tensor, count: Tensor, group: Any) -> None:
    # Sums and counts, not means: processes with other numbers of rows weigh by their rows.
    torch.distributed.all_reduce(sum, group=group)
    everywhere = count.clone()
    torch.distributed.all_reduce(everywhere, group=group)
    count.copy_(everywhere)
