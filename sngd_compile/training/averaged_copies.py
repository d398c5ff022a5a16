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
from torch.nn.parameter import is_lazy

from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.next_roots import warn_once, warn_once_of
from sngd_compile.fisher.weight_map import mapped_in_full
from sngd_compile.training.intact import held_by, sites_or_error
from sngd_compile.training.sharding import is_sharded, whole

FEW = 8
"""Numbers of a tensor that are looked at first."""


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


class Twin:
    """A tensor of a network that began as a copy of a reconstructed weight, as a target network's.

    Args:
        module: Which holds it.
        name: Of its parameter or buffer.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        """Remember what it is."""
        self.module, self.name = ref(module), name
        self.total = self._sum()

    def tensor(self) -> Tensor | None:
        """Return it as it is now, or None where it is gone."""
        return held_by(self.module, self.name)

    def is_written_to(self) -> bool:
        """Say whether its numbers are others than last time."""
        before, self.total = self.total, self._sum()
        return None not in (before, self.total) and before != self.total

    def _sum(self) -> float | None:
        tensor = self.tensor()
        return None if tensor is None else float(whole(tensor.detach().double().sum()))


@torch.no_grad()
def remember_twins(net: nn.Module, sites: Iterable[SiteOfModule]) -> None:
    """Note which tensors of a network, that was just reconstructed, equal one of its weights."""
    alike: dict[Any, list[tuple[nn.Module, str, Tensor]]] = {}
    for module in net.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and _has_numbers(tensor):
                alike.setdefault(_first_numbers(tensor), []).append((module, name, tensor))
    for site in sites:
        weight = site.weight
        known = alike.get(_first_numbers(weight), []) if _has_numbers(weight) else []
        others = [each for each in known if each[2] is not weight]
        # All ones, or zeros, are what many tensors begin as.
        if others and bool((weight != weight.flatten()[0]).any()):
            equal = [(module, name) for module, name, t in others if torch.equal(t, weight)]
            site.fisher.ties.twins = [Twin(*each) for each in equal]


def _has_numbers(tensor: Tensor) -> bool:
    is_plain = tensor.layout is torch.strided and not (is_lazy(tensor) or tensor.is_meta)
    return is_plain and tensor.is_floating_point() and tensor.numel() > 0


def _first_numbers(tensor: Tensor) -> Any:
    """Return what equal tensors have in common, without a look at all of their numbers."""
    some = tuple(tensor.detach().flatten()[:FEW].tolist())
    return tensor.shape, tensor.dtype, tensor.device, some


def warn_of_twins(leaders: Iterable[FisherLayer], stepped: Container[int]) -> None:
    """Warn once of a target network inside of a network, which is made of parameters.

    Args:
        leaders: Fisher layers that are about to get new roots.
        stepped: The ids of what optimizers step.
    """
    written = []
    for fisher in leaders:
        for twin in fisher.ties.twins:
            tensor = twin.tensor()
            is_trained = tensor is None or id(tensor) in stepped or tensor.grad is not None
            if twin.is_written_to() and not is_trained:
                written.append(fisher)
    warn_once_of(
        written,
        "twin",
        "another tensor of the same network began as a copy of this weight and was written to. "
        "Where it averages the parameters of several steps, as a target network does, these are w' "
        "of different roots and have no average: put sngd.follow(copy.deepcopy(online), online) in "
        "the place of that network after reconstruct, or average the attributes .weight",
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
