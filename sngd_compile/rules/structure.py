"""What is known of a layer's parameters before it runs, by its class.

A module whose forward cannot be captured is still reconstructed: its own forward runs, and each
call that a weight enters is met as it happens. How the weight is laid out must be known before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from sngd_compile.layout import Layout


@dataclass(frozen=True)
class Planned:
    """One weight of a module that runs as it is.

    Args:
        rule: Name of the rule, for the plan.
        layout: How the weight is laid out as matrices.
        bias: Name of the bias that joins its local Fisher, or None.
        kind: "diagonal" where the factor is by nature, else "shared".
    """

    rule: str
    layout: Layout
    bias: str | None = None
    kind: str = "shared"


Structure = Callable[[nn.Module], Mapping[str, Planned | str]]
"""From a module to its weights by name, or the reason for which one is left."""

_structures: dict[type[nn.Module], Structure] = {}


def register_structure(*classes: type[nn.Module]) -> Callable[[Structure], Structure]:
    """Register, as a decorator, what describes the weights of modules of these classes."""

    def register(structure: Structure) -> Structure:
        _structures.update(dict.fromkeys(classes, structure))
        return structure

    return register


def has_structure(module_class: type[nn.Module]) -> bool:
    """Say whether a class, or one that it derives from, is registered."""
    return any(base in _structures for base in module_class.__mro__)


def planned_weights(
    module: nn.Module, module_class: type[nn.Module]
) -> Mapping[str, Planned | str]:
    """Describe the weights of a module, by attribute name, or say why one is left.

    Of a class that nobody registered, a parameter `[..., O, K]` is taken for linear layers side by
    side. Parameters with fewer axes are not described.
    """
    for base in module_class.__mro__:
        if base in _structures:
            return _structures[base](module)
    owned = {name: p for name, p in module._parameters.items() if p is not None}
    return {name: guess(p.shape) for name, p in owned.items() if p.dim() >= 2}


def guess(shape: Sequence[int]) -> Planned:
    """Describe a parameter `[..., O, K]` of which nothing is known but its shape."""
    if len(shape) == 2:
        return Planned("as called", Layout.plain(shape))
    return Planned("as called", Layout.stacked(shape))
