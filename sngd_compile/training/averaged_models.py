"""Bringing copies into step with the network that is trained, those of `AveragedModel` unasked."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim.swa_utils import AveragedModel

from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.training.averaged_copies import (
    followers_of,
    let_follow,
    site_of_follower,
)
from sngd_compile.training.optimizer_hooks import sites_of
from sngd_compile.training.refresh import LocalSite, take_over_


def keep_in_step(site: LocalSite, leader: FisherLayer) -> None:
    """Give a site the root that `leader` has, and each that it will get or load."""
    if site.fisher.ties.leader() is leader:
        return
    let_follow(site, leader)
    for layer in (site.fisher, leader):
        if not layer.ties.is_hooked:
            layer.register_load_state_dict_post_hook(_after_load)  # type: ignore[no-untyped-call]
            layer.ties.is_hooked = True
    take_over_(site, leader)


@cache
def install_averaged_model_hook() -> None:
    """Let the copy in every `AveragedModel` made from now on keep in step with its origin."""
    register_module_module_registration_hook(_let_average_follow)


def _let_average_follow(module: nn.Module, name: str, child: nn.Module | None) -> None:
    """Look at a module that got a child."""
    if isinstance(module, AveragedModel) and child is not None:
        follow_origin(child.modules())


def follow_origin(modules: Iterable[nn.Module]) -> None:
    """Let those modules that are copies keep in step with what they are copies of."""
    for site in sites_of(modules):
        leader = site.fisher.ties.origin()
        if isinstance(leader, FisherLayer) and isinstance(site, LocalSite):
            keep_in_step(site, leader)


def _after_load(layer: nn.Module, _: object) -> None:
    """Bring a leader and its followers into one root again after one of them was loaded."""
    assert isinstance(layer, FisherLayer)
    for follower in followers_of(layer):
        take_over_(follower, layer)
    leader = layer.ties.leader()
    if leader is not None:
        for site in site_of_follower(layer):
            take_over_(site, leader)
