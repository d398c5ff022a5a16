"""Whether optimizers train a weight and its bias in one way, so that they may share coordinates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

from torch import Tensor
from torch.optim import Optimizer

from sngd_compile.training.site import Site


class Place(NamedTuple):
    """Where a parameter group is: an optimizer that loads a state has other groups from then on."""

    optimizer: ReferenceType[Optimizer]
    number: int

    def group(self) -> dict[str, Any]:
        """Return the group; nothing where the optimizer is gone."""
        optimizer = self.optimizer()
        return {} if optimizer is None else optimizer.param_groups[self.number]


@dataclass(frozen=True)
class Pair:
    """The parameter groups of a weight and of its bias, which are two that say the same."""

    of_weight: Place
    of_bias: Place
    settings: frozenset[str]

    @property
    def is_alike(self) -> bool:
        """Whether both groups are still stepped in one way."""
        one, other = self.of_weight.group(), self.of_bias.group()
        return all(_is_same(one.get(name), other.get(name)) for name in self.settings)


def part_biases_(
    sites: Sequence[Site], stepping: Sequence[Optimizer], known: Sequence[Optimizer]
) -> list[Pair]:
    """Part each bias from its weight where optimizers do not train both in one way.

    Args:
        sites: Those whose weight or bias one of `stepping` has.
        stepping: The optimizers that step now: one and those that it holds, or all of a backward
            pass.
        known: Those whose states move along.

    Returns:
        The pairs of groups on which weights and biases that stay together depend.
    """
    found: dict[int, dict[Optimizer, int]] = defaultdict(dict)
    for optimizer in stepping:
        for place, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                found[id(parameter)][optimizer] = place
    # Of all that step: one around another may know a part of the settings, as ZeRO does.
    settings = frozenset(name for optimizer in stepping for name in optimizer.defaults)
    pairs: set[Pair] = set()
    for site in sites:
        if not site.is_bias_joined:
            continue
        pair = _pair(site, found, settings)
        if pair is None or not pair.is_alike:
            site.part_bias_(known)
        elif pair.of_weight != pair.of_bias:
            pairs.add(pair)
    return list(pairs)


def _pair(
    site: Site, found: Mapping[int, dict[Optimizer, int]], settings: frozenset[str]
) -> Pair | None:
    """Return the groups of a weight and its bias; None where one has none, or another optimizer."""
    weight, bias = found.get(id(site.weight)), found.get(id(site.bias))
    trained = None if site.bias is None else site.bias.requires_grad
    if weight is None or bias is None or site.weight.requires_grad is not trained:
        return None
    # Of optimizers inside one another the innermost steps. Where it holds one of the two alone, the
    # other lies in another process, and the optimizer around them both says how it is trained.
    of_weight, of_bias = list(weight)[-1], list(bias)[-1]
    if of_bias in weight:
        of_weight = of_bias
    elif of_weight in bias:
        of_bias = of_weight
    if type(of_weight) is not type(of_bias):
        return None
    places = Place(ref(of_weight), weight[of_weight]), Place(ref(of_bias), bias[of_bias])
    return Pair(*places, settings)


def _is_same(one: object, other: object) -> bool:
    """Say whether two settings are equal; two tensors never, since a device would be waited for."""
    is_tensor = isinstance(one, Tensor) or isinstance(other, Tensor)
    return one is other or (not is_tensor and one == other)
