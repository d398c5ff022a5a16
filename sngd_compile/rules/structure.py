"""What is known of a layer's parameters before it runs, by its class.

A module whose forward cannot be captured is still reconstructed: its own forward runs, and each
call that a weight enters is observed as it happens. How the weight is laid out must be known
before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
"""From a module to its weights, by attribute name, and reasons for parameters that stay."""

_structures: dict[type[nn.Module], Structure] = {}


def register_structure(*classes: type[nn.Module]) -> Callable[[Structure], Structure]:
    """Register, as a decorator, what describes the weights of modules of these classes."""

    def register(structure: Structure) -> Structure:
        _structures.update(dict.fromkeys(classes, structure))
        return structure

    return register


def runs_known_forward(module_class: type[nn.Module]) -> bool:
    """Say whether a class is registered, or derived from one, and runs a forward of torch's own."""
    # A subclass may bring a forward of its own, of which nothing is known.
    registered = any(base in _structures for base in module_class.__mro__)
    return registered and str(module_class.forward.__module__).startswith("torch.nn.")


def planned_weights(
    module: nn.Module, module_class: type[nn.Module]
) -> Mapping[str, Planned | str]:
    """Describe the weights of a module by its class, by attribute name; of an unknown one none."""
    for base in module_class.__mro__:
        if base in _structures:
            return _structures[base](module)
    return {}
