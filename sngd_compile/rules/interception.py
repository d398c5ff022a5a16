"""A call that runs, matched as a node of a graph is: what a weight meets, and whether it fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from sngd_compile.layout import Layout
from sngd_compile.rules.base import Use
from sngd_compile.rules.registry import rule_for

Composite = Callable[..., Any]

SET_DATA: Any = Tensor.data.__set__  # type: ignore[attr-defined]

COMPOSITES: dict[Any, Composite] = {}
"""Functions that use several weights at once, and what to call instead while observing."""


def register_composite(*functions: Any) -> Callable[[Composite], Composite]:
    """Register, as a decorator, an equal function whose calls use one weight each."""

    def register(composite: Composite) -> Composite:
        COMPOSITES.update(dict.fromkeys(functions, composite))
        return composite

    return register


def name_of(func: Any) -> str:
    """Return the name of a function that was intercepted."""
    return str(getattr(func, "__name__", func))


def is_in_place(func: Any) -> bool:
    """Say whether a function is named as one that changes its first argument is."""
    name = name_of(func)
    # Slices: Dynamo of torch 2.14 does not follow `endswith` on the name of a function.
    return (name[-1:] == "_" and name[-2:] != "__") or name == "__setitem__" or func == SET_DATA


def intercepted_use(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], weights: Mapping[Any, Tensor]
) -> Use | str:
    """Match a call of a function that has a rule.

    Args:
        func: The function.
        args: Its arguments.
        kwargs: Its arguments by name.
        weights: The weights among them, or views of weights.
    """
    rule = rule_for(func)
    assert rule is not None
    # A rule asks the same of a call that runs as of a node in a graph: here the tensors themselves
    # stand for the nodes that hold parameters.
    try:
        return rule.match(rule.bind(args, kwargs, weights))
    except TypeError:
        return "no rule for these arguments"


def swapped_width(layout: Layout, known: Layout, group: int | None) -> int | None:
    """Compare a call's layout with the planned one; parts of the outputs are welcome.

    Returns:
        As `Layout.swapped_width`: None where the call does not fit.
    """
    if group is not None:
        order = (1, 0) if known.is_transposed else (0, 1)
        known = Layout(known.view[-2:], order, known.matrix[-2:])
    # A part of the outputs has rows of the same width, and all outputs share one local Fisher.
    same_side = layout.orders_like(known) and layout.groups == known.groups
    if same_side and layout.width == known.width:
        return 0
    return layout.swapped_width(known)
