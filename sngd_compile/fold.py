"""Back to ordinary weights, `w := w' R`, and the manual refresh."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from sngd_compile.backend.compiled_models import states_of
from sngd_compile.errors import ModelError
from sngd_compile.modules.copying import copied
from sngd_compile.modules.reconstructed import fold_module_, reconstructed_modules
from sngd_compile.modules.whole_network import forget
from sngd_compile.training.averaged_copies import warn_of_restored
from sngd_compile.training.data_parallel import (
    close_steps_,
    find_groups,
    keep_out_of_broadcast,
)
from sngd_compile.training.optimizer_hooks import known_optimizers, sites_of
from sngd_compile.training.refresh import refresh_sites
from sngd_compile.training.sharding import sharded_name

Model = TypeVar("Model", bound=nn.Module)


def fold(net: Model) -> Model:
    """Return an ordinary copy of a reconstructed network: same function, no Fisher layers.

    The copy has the classes and the state dict keys of the original model. Weights are folded in
    float64 and rounded once.

    Args:
        net: A reconstructed network; it is not changed. A plain model is copied as it is.

    Raises:
        ModelError: `net` is no module, cannot be copied, or `fully_shard` has cut its weights into
            parts.

    Source: arXiv 2412.07441, `w = G^(-1/2) w'`. Law 3 tests it.
    """
    _require_module(net)
    _require_whole(net)
    warn_of_restored(site for m in reconstructed_modules(net).values() for site in m.local_sites())
    return fold_(copied(net, "fold it itself, with sngd.fold_"))


def fold_(net: Model) -> Model:
    """Fold a network in place, keeping its parameter objects and their momenta; see `fold`.

    Optimizers that have stepped the network can go on: they now step `w`.

    Raises:
        ModelError: `net` is no module, or `fully_shard` has cut its weights into parts.
    """
    _require_module(net)
    _require_whole(net)
    for module in reconstructed_modules(net).values():
        fold_module_(module)
    for part in net.modules():
        forget(part)
    # The list for DistributedDataParallel names buffers that are gone now.
    keep_out_of_broadcast(net)
    return net


def refresh_(net: Model) -> Model:
    """Renew every root of a network now, from what has been observed; the function stays.

    Training does this by itself after `optimizer.step()`. A layer that has observed nothing since
    its last refresh keeps its root.

    Args:
        net: A reconstructed network; its Fisher layers and the coordinates of `w'` change.

    Returns:
        The network itself.

    Raises:
        ModelError: `net` is no module.

    Source: docs/method.md, refresh. Law 2 tests it.
    """
    _require_module(net)
    sites = sites_of([*net.modules(), *states_of(net).values()])
    once = list({id(site.fisher): site for site in sites}.values())
    find_groups((site.weight, site.fisher) for site in once)
    close_steps_([site.fisher for site in once])
    refresh_sites(once, known_optimizers())
    return net


def _require_module(net: object) -> None:
    if not isinstance(net, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, got {type(net).__name__}")


def _require_whole(net: nn.Module) -> None:
    name = sharded_name(net)
    if name is not None:
        raise ModelError(
            f"{name} is sharded: gather get_model_state_dict(net, options=StateDictOptions("
            "full_state_dict=True)) of torch.distributed.checkpoint.state_dict, load it into "
            "reconstruct(model) in one process, and fold that"
        )
