"""Averages of weights: copies of a network that follow its roots."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from sngd_compile.errors import ModelError
from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.modules.reconstructed import reconstructed_modules
from sngd_compile.training.averaged_models import keep_in_step
from sngd_compile.training.refresh import LocalSite

Model = TypeVar("Model", bound=nn.Module)


def follow(copy: Model, net: nn.Module) -> Model:
    """Let a copy of a network take over its roots, so that weights may be averaged into the copy.

    A weight is `w = w' R`, and the parameters are `w'`. Their average over several steps is that
    of the weights only if all have one root `R`. So whenever a root of `net` is renewed, that of
    the copy becomes the same, and its `w'` moves along: the copy computes what it computed. Both
    then agree on what a parameter means, and any rule may mix them, as in

        for average, parameter in zip(copy.parameters(), net.parameters()):
            average.data.lerp_(parameter.data, 0.001)

    A copy that `torch.optim.swa_utils.AveragedModel` makes follows by itself.

    Args:
        copy: A network of the same architecture, as `copy.deepcopy(net)`; no optimizer steps it.
            What it computes does not change; its roots become those of `net` now.
        net: The reconstructed network that is trained.

    Returns:
        The copy.

    Raises:
        ModelError: One of them is no module or is not reconstructed, or they differ in a
            reconstructed weight.

    Source: docs/weights.md. Tested by tests/modules/test_averaging.py.
    """
    leaders, followers = _sites(net), _sites(copy)
    for leader, site in zip(leaders, followers, strict=False):
        _require_alike(leader, site)
    if len(leaders) != len(followers):
        raise ModelError(
            f"the copy has {len(followers)} reconstructed weights, the network {len(leaders)}: "
            "make it with copy.deepcopy(net)"
        )
    for leader, site in zip(leaders, followers, strict=True):
        keep_in_step(site, leader.fisher)
    return copy


def _sites(net: nn.Module) -> list[LocalSite]:
    modules = reconstructed_modules(net).values()
    sites = {id(site.fisher): site for module in modules for site in module.local_sites()}
    if not sites:
        raise ModelError(
            "neither has anything to follow: no weight is reconstructed. For an average in an "
            "ordinary model, average the weights of sngd.fold(net)"
        )
    return list(sites.values())


def _require_alike(leader: LocalSite, site: LocalSite) -> None:
    ours, others = (s.fisher for s in (leader, site))
    if ours is others:
        raise ModelError(f"{ours.name}: a network cannot follow itself; copy.deepcopy(net) first")
    # An optimizer may have parted the biases of one of them, which the other then takes over.
    same = (leader.bias is None) is (site.bias is None) and _parted(ours) == _parted(others)
    if leader.weight.shape != site.weight.shape or not same:
        raise ModelError(
            f"{ours.name} {tuple(leader.weight.shape)}, {ours.kind}, and {others.name} "
            f"{tuple(site.weight.shape)}, {others.kind}: the copy has another local Fisher; make "
            "it with copy.deepcopy(net)"
        )


def _parted(layer: FisherLayer) -> FisherSpec:
    return kind_of(layer.spec).with_bias(layer.spec, joined=False)
