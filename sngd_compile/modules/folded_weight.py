"""A folded weight that shows its Fisher layer its inputs, wherever it is used.

A module whose forward cannot be captured runs as it is, and so does foreign code that reads the
`.weight` of a reconstructed module. Both get the folded `w = w' R` as a `FoldedWeight`. It behaves
like the tensor that it is: every function computes what it would, on plain tensors. Beside that,
calls that a rule understands are observed, and its views are tracked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sngd_compile.errors import ModelError
from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.observe import observe
from sngd_compile.layout import Layout
from sngd_compile.rules import Use, rule_for
from sngd_compile.rules.interception import (
    COMPOSITES,
    intercepted_use,
    is_in_place,
    name_of,
    swapped_width,
)
from sngd_compile.rules.weight_views import VIEWS, bare, track_view
from sngd_compile.torch_private import MODULE_CALL, DisableTorchFunctionSubclass, tree_leaves


class GuardedWeight(Tensor):
    """A folded weight that a forward reads outside of observation: it refuses to be changed.

    Attributes:
        fisher: Its local Fisher layer.
    """

    fisher: FisherLayer

    def _refuse_operator(self, other: Any) -> Any:
        # The operators of torch take a TypeError, as ModelError is one, for a try that failed.
        _refuse_change(Tensor.copy_, (self, other), {})

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ifloordiv__ = _refuse_operator
    __imod__ = __ipow__ = _refuse_operator  # type: ignore[assignment]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute on plain tensors."""
        _refuse_change(func, args, kwargs or {})
        with DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})


class FoldedWeight(GuardedWeight):
    """The folded weight of a reconstructed module, tracked through views and calls.

    Attributes:
        is_transposed: Whether this is the transpose of the parameter `[..., rows, columns]`.
        group: Index of the group that a stack of weights was indexed by, or None.
    """

    is_transposed: bool
    group: int | None

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute on plain tensors; observe, or track a view."""
        kwargs = kwargs or {}
        _refuse_change(func, args, kwargs)
        with DisableTorchFunctionSubclass():
            # A fused function multiplies several weights inside C++, where no call is seen: an
            # equal one, written out, stands in for it in an observed forward only.
            if func in COMPOSITES:
                return COMPOSITES[func](*args, **kwargs)
            result = func(*args, **kwargs)
            # A view is no use yet. It has to stay a folded weight, or the product that it enters
            # later would not be observed.
            if func in VIEWS and isinstance(args[0], FoldedWeight):
                view = track_view(args[0], folded_weight, func, args[1:], kwargs, result)
                if view is not None:
                    return view
            if rule_for(func) is not None:
                _show_call(func, args, kwargs)
            # `w.shape` uses no values, and `w.detach()` trains none: neither is worth a warning.
            elif any(isinstance(a, Tensor) and a.requires_grad for a in tree_leaves(result)):
                _remember_unmatched(func, args, kwargs)
            return result


def folded_weight(
    fisher: FisherLayer, value: Tensor, is_transposed: bool = False, group: int | None = None
) -> Tensor:
    """Return a folded weight, or a view of one, that will be observed."""
    # The same memory and the same autograd node: gradients reach w' through it as before.
    weight = value.as_subclass(FoldedWeight)
    weight.fisher, weight.is_transposed, weight.group = fisher, is_transposed, group
    return weight


def guarded_weight(fisher: FisherLayer, value: Tensor) -> Tensor:
    """Return a folded weight that is not observed but refuses to be changed in place."""
    weight = value.as_subclass(GuardedWeight)
    weight.fisher = fisher
    return weight


def is_in_forward() -> bool:
    """Say whether this runs inside the call of a module, where a weight is used.

    Elsewhere, as in a test or a penalty, a folded weight is an ordinary tensor.
    """
    if torch.compiler.is_compiling():
        return True
    # A flag set around each forward would be seen by other threads and left behind by an error in
    # between; the stack is always right.
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is MODULE_CALL:
            return True
    return False


def plain(value: Any) -> Any:
    """Return a tensor without what tracks it; anything else as it is."""
    return bare(value) if isinstance(value, FoldedWeight) else value


def _refuse_change(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise where a call would change a folded weight in place: the change would be lost.

    Raises:
        ModelError: With the name of the weight and the line.
    """
    name, first = name_of(func), args[0] if args else next(iter(kwargs.values()), None)
    in_place = is_in_place(func) and name not in _HARMLESS
    changed = first if in_place else kwargs.get("out")
    if isinstance(changed, GuardedWeight):
        raise ModelError(
            f"{changed.fisher.name}: {name} at {_caller()} changes it in place during a forward "
            "pass. It is made anew from w' each time, so the change would be lost; leave it as it "
            f"is with overrides={{{changed.fisher.name!r}: None}}"
        )


_HARMLESS = ("requires_grad_", "share_memory_")


def show(weight: Any, *rows: Tensor) -> None:
    """Let a weight observe the inputs of a linear layer that it is part of, `[..., K]` each."""
    for some in rows:
        show_use(weight, (some,), Layout.plain(weight.shape), "linear")


def show_use(weight: Any, inputs: tuple[Tensor, ...], layout: Layout, rule: str) -> None:
    """Let a weight observe its inputs, by the rows of a rule."""
    if isinstance(weight, FoldedWeight):
        _show(weight, Use(weight, inputs, layout), rule)


def _show_call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Match an intercepted call and observe it."""
    rule = rule_for(func)
    assert rule is not None
    weights = {a: a for a in tree_leaves((args, kwargs)) if isinstance(a, FoldedWeight)}
    use = intercepted_use(func, args, kwargs, weights)
    weight = None if isinstance(use, str) else use.weight
    if not isinstance(weight, FoldedWeight) or not _show(weight, cast(Use, use), rule.name):
        _remember_unmatched(func, args, kwargs)


def _show(weight: FoldedWeight, use: Use, rule: str) -> bool:
    """Observe a use; return whether it fits the way in which the weight is laid out."""
    fisher, layout = weight.fisher, use.layout
    if kind_of(fisher.spec).sees_outputs:  # which are not seen here
        return False
    # The call was matched by the shape that it saw; the Fisher layer knows the parameter's.
    if weight.is_transposed:
        layout = layout.of_transpose()
    swapped = swapped_width(layout, fisher.layout, weight.group)
    if swapped is None:
        return False
    inputs = cast(tuple[Tensor, ...], use.inputs)
    observe(fisher, rule, inputs, use.geometry, True, swapped, weight.group)
    return True


def _remember_unmatched(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Note where a weight was used in a way that no rule understands, for a later warning."""
    if torch.compiler.is_compiling():
        return
    for weight in tree_leaves((args, kwargs)):
        if isinstance(weight, FoldedWeight) and not weight.fisher.unmatched:
            weight.fisher.unmatched = f"{name_of(func)} at {_caller()}"


def _caller() -> str:
    """Name file and line of the first frame outside torch and this library."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in ("torch", "sngd_compile"):
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
