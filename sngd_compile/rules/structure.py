"""What is known of a layer's parameters before it runs, by its class.

A module whose forward cannot be captured is still reconstructed: its own forward runs, and each
call that a weight enters is met as it happens. How the weight is laid out must be known before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from sngd_compile.bytecode import is_right_factor
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


Structure = Callable[[nn.Module], dict[str, Planned | str]]
"""From a module to its weights, by attribute name, and reasons for parameters that stay."""

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


def planned_weights(module: nn.Module, module_class: type[nn.Module]) -> dict[str, Planned | str]:
    """Describe the weights of a module, by attribute name.

    Of a class that nobody registered, a parameter `[..., O, K]` is taken for linear layers side by
    side; for `[..., K, O]` where the forward multiplies by it from the right. Parameters with fewer
    axes are not described.
    """
    for base in module_class.__mro__:
        if base in _structures:
            return _structures[base](module)
    described: dict[str, Planned | str] = {}
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.dim() >= 2:
            is_turned = is_right_factor(module_class, module_class.forward, name)
            described[name] = Planned("as called", _guess(parameter.shape, is_turned))
    return described


def _guess(shape: Sequence[int], is_turned: bool) -> Layout:
    if len(shape) == 2:
        return Layout.transposed(shape) if is_turned else Layout.plain(shape)
    return Layout.stacked_transposed(shape) if is_turned else Layout.stacked(shape)
