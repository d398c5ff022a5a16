"""What is known of a layer's parameters before it runs, by its class.

A module whose forward cannot be captured is still reconstructed: its own forward runs, and each
call that a weight enters is observed as it happens. How the weight is laid out must be known
before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from sngd_compile.capture.bytecode import is_right_factor
from sngd_compile.layout import Layout
from sngd_compile.rules.source import is_used_elementwise


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

GUESS = "observed at run time"
"""The rule of a weight of which nothing but its shape is known before it is used."""

ELEMENTWISE = (
    "used elementwise by a forward that cannot be captured: its local Fisher is taken for the "
    "identity, so its steps are plain descent"
)

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
    """Describe the weights of a module, by attribute name.

    Of a class that is not registered, a parameter `[..., O, K]` is taken for linear layers side by
    side; for `[..., K, O]` where the forward multiplies by it from the right. One with fewer axes,
    or one that is broadcast along its first, is no matrix.
    """
    for base in module_class.__mro__:
        if base in _structures:
            return _structures[base](module)
    described: dict[str, Planned | str] = {}
    for name, parameter in module._parameters.items():
        if parameter is None or not _is_matrix(parameter):
            continue
        # Without this two vectors of Mamba would be taken for matrices (decision 22).
        if is_used_elementwise(module_class, name):
            described[name] = ELEMENTWISE
            continue
        # By this alone experts whose inputs come first have their exact moment (decision 22).
        is_transposed = is_right_factor(module_class, module_class.forward, name)
        described[name] = Planned(GUESS, _guess(parameter.shape, is_transposed))
    return described


def _is_matrix(parameter: nn.Parameter) -> bool:
    shape = parameter.shape
    return len(shape) == 2 or (len(shape) > 2 and shape[0] > 1)


def _guess(shape: Sequence[int], is_transposed: bool) -> Layout:
    if len(shape) == 2:
        return Layout.transposed(shape) if is_transposed else Layout.plain(shape)
    return Layout.stacked_transposed(shape) if is_transposed else Layout.stacked(shape)
