"""Copies of Fisher layers that take over every new root, so that averages of w' are averages of w.

`w = w' R`. Numbers that average `w'` of several steps mean something in the coordinates of one root
only. So what holds an average, as an exponential one or a target network, follows the network that
is trained: each root that this one gets, it gets too, and what it computes stays.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import Any, Protocol, cast
from weakref import ref

import torch
from torch import Tensor, nn

from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.next_roots import warn_once, warn_once_of
from sngd_compile.fisher.weight_map import mapped_in_full
from sngd_compile.training.intact import sites_or_error
from sngd_compile.training.sharding import is_sharded, whole


class SiteOfModule(Protocol):
    """A weight of a live module, see `LocalSite`."""

    @property
    def module(self) -> nn.Module:
        """Whose weight it is."""
        ...

    @property
    def fisher(self) -> FisherLayer:
        """Its local Fisher layer."""
        ...

    @property
    def weight(self) -> Tensor:
        """W'."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """b', or None."""
        ...


def let_follow(site: SiteOfModule, leader: FisherLayer) -> None:
    """Give a site every root that `leader` will get."""
    # It follows one network at a time: roots of two would take turns.
    former = site.fisher.ties.leader()
    if former is not None:
        former.ties.followers.discard(site.fisher)
    site.fisher.ties.leader, site.fisher.ties.module = ref(leader), ref(site.module)
    leader.ties.followers.add(site.fisher)


def followers_of(leader: FisherLayer) -> Iterator[Any]:
    """Yield the live sites that take over the roots of `leader`."""
    for fisher in list(leader.ties.followers):
        yield from site_of_follower(cast(FisherLayer, fisher))


def site_of_follower(fisher: FisherLayer) -> list[Any]:
    """Return the site of a Fisher layer that follows another; none where its module is gone."""
    module = fisher.ties.module()
    if module is None:
        return []
    sites, error = sites_or_error(module)
    if error is not None:  # the network that leads is trained, and is not the one to stop
        warn_once(fisher, "damaged", f"it no longer follows the network in training: {error}")
    return [site for site in sites if site.fisher is fisher]


def warn_of_averages(sites: Iterable[SiteOfModule], leaders: Container[Any]) -> None:
    """Warn once of a copy whose weights somebody writes to, and that does not follow.

    Args:
        sites: Those that no optimizer steps.
        leaders: Fisher layers that are about to get new roots.
    """
    for site in sites:
        fisher = site.fisher
        if fisher.ties.leader() is not None or fisher.ties.origin() not in leaders:
            continue
        total = whole(site.weight.detach().double().sum())
        if fisher.ties.is_written_to(total):
            warn_once(
                fisher,
                "averaged",
                "the weights of this copy of a network in training were written to. Where they "
                "average those of several steps, call sngd.follow(copy, net) once, before the "
                "first step: w' of different roots have no average",
            )


def remember_copies(sites: Iterable[SiteOfModule]) -> None:
    """Note what the weights of a module that was just deep-copied are."""
    for site in sites:
        if site.fisher.ties.origin() is not None and not is_sharded(site.weight):
            site.fisher.ties.remember(site.module, site.weight)


def warn_of_restored(sites: Iterable[SiteOfModule]) -> None:
    """Warn once of parameters that are, number by number, those of a copy with other roots."""
    restored = [
        site.fisher
        for site in sites
        for copied in site.fisher.ties.copies
        if _stands_for_another(site, cast(FisherLayer, copied))
    ]
    warn_once_of(
        restored,
        "restored",
        "its parameter was set to that of a copy of the network that has another root, so it "
        "stands for another weight now. Give back the whole copy.state_dict() by load_state_dict, "
        "or call sngd.follow(copy, net) before the first step",
    )


@torch.no_grad()
def _stands_for_another(site: SiteOfModule, copied: FisherLayer) -> bool:
    """Say whether a copy has the same parameter, and another weight."""
    module = copied.ties.module()
    for other in [] if module is None else sites_or_error(module)[0]:
        if other.fisher is not copied or not _is_equal(site.weight, other.weight):
            continue
        ours, theirs = (
            mapped_in_full("fold", s.fisher.root_buffers, s.fisher.layout, s.weight, s.bias)[0]
            for s in (site, other)
        )
        return not torch.allclose(ours, theirs, rtol=1e-4, atol=0)
    return False


def _is_equal(one: Tensor, other: Tensor) -> bool:
    is_comparable = one.device == other.device and not (is_sharded(one) or is_sharded(other))
    return is_comparable and torch.equal(one, other)
