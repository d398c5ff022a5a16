"""Copies of Fisher layers that take over every new root, so that averages of w' are averages of w.

`w = w' R`. Numbers that average `w'` of several steps mean something in the coordinates of one root
only. So what holds an average, as an exponential one or a target network, follows the network that
is trained: each root that this one gets, it gets too, and what it computes stays.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import Any, Protocol, cast
from weakref import ref

from torch import Tensor, nn

from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.next_roots import warn_once
from sngd_compile.training.intact import sites_or_error
from sngd_compile.training.sharding import whole


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
        total = float(whole(site.weight.detach().double().sum()))
        if fisher.ties.is_written_to(total):
            warn_once(
                fisher,
                "averaged",
                "the weights of this copy of a network in training were written to. Where they "
                "average those of several steps, call sngd.follow(copy, net) once, before the "
                "first step: w' of different roots have no average",
            )
