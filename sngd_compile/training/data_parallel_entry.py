"""Networks that enter DistributedDataParallel: all processes get the Fisher layers of the first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.torch_private import EXTRA_STATE
from sngd_compile.training.data_parallel import buffers_of_layers, without_join
from sngd_compile.training.optimizer_hooks import register_owner, sites_of
from sngd_compile.training.refresh import LocalSite, change_form_


@cache
def install_data_parallel_hook() -> None:
    """Look at every DistributedDataParallel that is made from now on."""
    register_module_module_registration_hook(_enter_data_parallel)


def _enter_data_parallel(module: nn.Module, name: str, child: nn.Module | None) -> None:
    """Give all processes the Fisher layers of the first, as they get its parameters."""
    if not isinstance(module, DistributedDataParallel) or child is None:
        return
    sites = [site for site in sites_of(child.modules()) if isinstance(site, LocalSite)]
    sites = list({id(site.fisher): site for site in sites}.values())
    if sites:
        _take_forms_(sites, module.process_group)
        # What it read of the module says nothing where only a part of that is reconstructed.
        module.parameters_to_ignore.update(buffers_of_layers(child))
        without_join(module, sites[0].fisher)
        for site in sites:
            site.fisher.ties.process_group = module.process_group
            _broadcast_(site.fisher, module.process_group)


def _take_forms_(sites: Sequence[LocalSite], group: Any) -> None:
    """Part or join each bias as in the first process: maybe it alone has loaded a checkpoint."""
    device = sites[0].fisher.sum.device
    joined = torch.tensor([int(site.fisher.spec.has_bias) for site in sites], device=device)
    torch.distributed.broadcast(joined, group=group, group_src=0)
    for site, is_joined in zip(sites, joined.tolist(), strict=True):
        if is_joined != site.fisher.spec.has_bias:
            change_form_(site, bool(is_joined), ())  # its w' will be that of the first process too
            register_owner(site.module)


def _broadcast_(layer: FisherLayer, group: Any) -> None:
    """Take the state of the first process."""
    # A file says all that there is: what is joint, and only that.
    state = layer.state_dict(keep_vars=True)
    for value in state.values():
        sent = value.to(layer.sum.device)
        torch.distributed.broadcast(sent, group=group, group_src=0)
        value.copy_(sent)
    layer.set_extra_state(state[EXTRA_STATE])
    layer.share_all_()
