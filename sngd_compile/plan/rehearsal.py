"""Which calls the weights of a forward enter that runs as it is: found before it runs.

The forward is rehearsed on values of which nothing is known, along every branch. Each call that a
weight, or a view of one, enters is put to the same tests as while the network trains. So what is
planned here is what will be observed, and any other weight stays plain, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sngd_compile.capture.bytecode import words
from sngd_compile.capture.stand_ins import Paths, Unknown, arguments_of, stand_in
from sngd_compile.capture.tracer import line_of_caller
from sngd_compile.layout import Layout
from sngd_compile.plan.reasons import ADDED, LONE_BIAS, PLAIN, TOKEN
from sngd_compile.rules import RULES, Planned, rule_for
from sngd_compile.rules.interception import (
    COMPOSITES,
    intercepted_use,
    is_in_place,
    name_of,
    swapped_width,
)
from sngd_compile.rules.lookup import Lookup
from sngd_compile.rules.weight_views import VIEWS, bare, track_view
from sngd_compile.torch_private import IGNORING_SUBCLASS, tree_leaves, tree_map_only


@dataclass
class Heard:
    """What a rehearsal has heard of one parameter.

    Attributes:
        name: Of the parameter, among those that are watched.
        layout: How it is taken to be laid out; the calls are measured against that.
        wanted: The layouts that its calls ask for, with the names of their rules.
        fits: Whether all of them fit `layout`.
        biases: What the calls add as their bias.
        joins: The weights whose calls add it as their bias.
        refused: Why a call that it enters cannot be observed, or "".
        composite: Whether it enters a function that has an equal one to observe.
    """

    name: str
    layout: Layout
    wanted: list[tuple[Layout, str]] = field(default_factory=list)
    fits: bool = True
    biases: set[str] = field(default_factory=set)
    joins: set[str] = field(default_factory=set)
    refused: str = ""
    composite: bool = False

    @property
    def groups(self) -> int | None:
        """Groups of the layout, as a Fisher layer has them."""
        return self.layout.groups


class Watched(Tensor):
    """A parameter in a rehearsal, or a view of one: its sizes are known, its numbers are not.

    Attributes:
        fisher: What is heard of it, in the place of a Fisher layer.
        is_transposed: As of a folded weight.
        group: As of a folded weight.
        is_whole: Whether it is the parameter itself.
        is_slice: Whether it is a slice that leaves inputs out, which counts as looked up.
    """

    __torch_function__ = IGNORING_SUBCLASS
    fisher: Heard
    is_transposed: bool
    group: int | None
    is_whole: bool
    is_slice: bool


def watched(
    heard: Heard,
    value: Tensor,
    is_transposed: bool = False,
    group: int | None = None,
    is_whole: bool = False,
    is_slice: bool = False,
) -> Watched:
    """Return a stand-in for a parameter or a view of one."""
    made = value.as_subclass(Watched)
    made.fisher, made.is_whole, made.is_slice = heard, is_whole, is_slice
    made.is_transposed, made.group = is_transposed, group
    return made


class Rehearsal(TorchFunctionMode):
    """Run a forward along all its paths; see the module's text.

    Args:
        module: The module; neither it nor its tensors are changed.
        module_class: The class whose forward is run.
        names: The parameters to watch, those of children too, with their names.
    """

    def __init__(
        self, module: nn.Module, module_class: type[nn.Module], names: Mapping[nn.Parameter, str]
    ) -> None:
        super().__init__()
        self.names, self.problem = names, ""
        parameter = next(iter(names))
        self.dtype, self.device = parameter.dtype, parameter.device
        self.heard = {name: Heard(name, _first_guess(p.shape)) for p, name in names.items()}
        self._run(module, module_class)
        first, again = self.heard, {n: _second_guess(h) for n, h in self.heard.items()}
        if any(heard.layout != again[name] for name, heard in first.items()):
            # Measured once more, against what the calls ask for.
            self.heard = {name: Heard(name, layout) for name, layout in again.items()}
            self._run(module, module_class)
            self.heard = {n: first[n] if h.refused else h for n, h in self.heard.items()}

    def found(self, name: str, known: Planned | str = "") -> Planned | str:
        """Say how a parameter is observed, or why it is not; "" for one that is not used.

        Args:
            name: As given.
            known: What the class says of one that enters a function of several weights.
        """
        heard = self.heard[name]
        if heard.refused:
            return heard.refused
        if heard.composite:
            return known
        if not heard.wanted:
            return LONE_BIAS if heard.joins else ""
        if not heard.fits:
            rules = sorted({rule for _, rule in heard.wanted})
            return f"its uses need different local Fishers ({', '.join(rules)}); {PLAIN}"
        rule = next((r for asked, r in heard.wanted if asked == heard.layout), heard.wanted[0][1])
        bias = next(iter(heard.biases)) if len(heard.biases) == 1 else ""
        joins = bias and self.heard[bias].joins == {name} and not self._is_used(bias)
        return Planned(rule, heard.layout, bias if joins else None, RULES[rule].kind)

    def _is_used(self, name: str) -> bool:
        """Say whether a parameter is more than the bias of calls."""
        return bool(self.heard[name].wanted or self.heard[name].refused)

    def _run(self, module: nn.Module, module_class: type[nn.Module]) -> None:
        paths = self.paths = Paths()
        held: dict[Tensor, Tensor] = {}
        for parameter, name in self.names.items():
            value = torch.empty_like(parameter, device="meta").requires_grad_()
            held[parameter] = watched(self.heard[name], value, is_whole=True)
        for way in arguments_of(module_class, paths):
            paths.left = [()]

            def forward(way: Any = way) -> None:
                twin = stand_in(module, module_class, paths, held)
                with self, torch.enable_grad():
                    type(twin).forward(twin, *way[0], **way[1])

            paths.run(forward)
        self.problem = paths.problem

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute nothing but sizes; look at every call that a parameter enters."""
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        weights = {leaf: leaf for leaf in leaves if isinstance(leaf, Watched)}
        if any(isinstance(leaf, Unknown) for leaf in leaves):
            if weights:
                return self._meet(func, args, kwargs, weights)
            return self._of_unknown(func)
        if weights:
            return self._of_weights(func, args, kwargs, weights)
        name = name_of(func)
        # What is the forward's own is made; nothing else is changed, and nothing is drawn.
        if any(word in name for word in _DRAWS):
            return self.paths.unknown()
        return args[0] if _is_change(func, kwargs) and args else func(*args, **kwargs)

    def _of_unknown(self, func: Any) -> Any:
        """Answer what every activation answers alike."""
        known = {
            "dtype": self.dtype,
            "device": self.device,
            "layout": torch.strided,
            "is_cuda": self.device.type == "cuda",
            "requires_grad": True,
            "is_floating_point": True,
        }
        name = (
            name_of(getattr(func, "__self__", func))
            if name_of(func) == "__get__"
            else name_of(func)
        )
        if name in known:
            return known[name]
        return False if name.startswith("is_") else self.paths.unknown()

    def _of_weights(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], weights: Mapping[Any, Any]
    ) -> Any:
        """Answer a question about a parameter; follow what is computed from parameters alone."""
        if func == DEVICE:
            return self.device
        try:
            result = func(*_bare(args), **_bare(kwargs))
        except (RuntimeError, TypeError, IndexError, NotImplementedError):  # it asks for numbers
            return self._meet(func, args, kwargs, weights)
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not tensors:
            return None if _is_change(func, kwargs) else result
        # Without a gradient it is no use that trains the weight.
        if not any(tensor.requires_grad for tensor in tensors):
            return self.paths.unknown()
        return self._meet(func, args, kwargs, weights, result)

    def _meet(
        self,
        func: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        weights: Mapping[Any, Any],
        result: Any = None,
    ) -> Any:
        """Follow a view, or hear what a call makes of the parameters that enter it."""
        first = args[0] if args else None
        if func in VIEWS and isinstance(first, Watched):
            view = self._view(first, func, args[1:], kwargs, result)
            if view is not None:
                return view
        # A change in place is no use: it is refused as it happens.
        if not torch.is_grad_enabled() or _is_change(func, kwargs):
            return self.paths.unknown()
        if func in COMPOSITES:
            for weight in weights:
                weight.fisher.composite = True
            return self.paths.unknown()
        rule = rule_for(func)
        known = [_numbers(value) for value in args], {k: _numbers(v) for k, v in kwargs.items()}
        use: Any = intercepted_use(func, *known, weights) if rule else ""
        parts = [weight for weight in weights if weight.is_slice]
        self._meet_parts(func, use, parts)
        for weight in [weight for weight in weights if not weight.is_slice]:
            if rule is None or isinstance(use, str):
                reason = _reason(func, use, len(weights) == len(_tensors(args, kwargs)))
            elif weight is use.weight:
                self._hear(weight, use.layout, rule.name, use.bias)
                if isinstance(result, Tensor) and _is_slice(func, args):
                    return watched(weight.fisher, result, is_slice=True)
                continue
            elif weight is use.bias and weight.is_whole:
                weight.fisher.joins.add(use.weight.fisher.name)
                continue
            else:
                reason = f"it enters {_where(func)} beside another weight; {PLAIN}"
            weight.fisher.refused = weight.fisher.refused or reason
        return self.paths.unknown()

    def _meet_parts(self, func: Any, use: Any, parts: Sequence[Watched]) -> None:
        """Refuse what was looked up and is a weight after all; else it is an activation."""
        for part in parts:
            is_weight = part is getattr(use, "weight", None) and func not in Lookup.targets
            if is_weight and not part.fisher.refused:
                reason = f"a slice of its inputs enters {_where(func)} as a weight; {PLAIN}"
                part.fisher.refused = reason

    def _view(
        self, weight: Watched, func: Any, rest: Sequence[Any], kwargs: Any, result: Any
    ) -> Any:
        """Follow a view as it is followed while the network trains."""

        def make(heard: Any, value: Tensor, is_transposed: bool = False, group: Any = None) -> Any:
            return watched(heard, value, is_transposed, group)

        if weight.is_slice and isinstance(result, Tensor):
            return watched(weight.fisher, result, is_slice=True)
        if result is not None:
            return track_view(weight, make, func, rest, kwargs, result)
        if VIEWS[func] == "same":
            return make(weight.fisher, bare(weight), weight.is_transposed, weight.group)
        # The number of a group is known in the forward alone, as of the experts that are reached.
        is_stack = weight.dim() == 3 and weight.group is None and VIEWS[func] == "item"
        if not is_stack or not isinstance(rest[-1], Unknown | int):
            return None
        return track_view(weight, make, func, (*rest[:-1], 0), kwargs, bare(weight)[0])

    def _hear(self, weight: Watched, layout: Layout, rule: str, bias: Watched | None) -> None:
        """Take note of a use: which layout it asks for, and whether it fits."""
        heard = weight.fisher
        if weight.is_transposed:
            layout = layout.of_transpose()
        shape = next(p.shape for p, name in self.names.items() if name == heard.name)
        heard.wanted.append((_of_parameter(layout, shape, weight.group), rule))
        heard.fits &= swapped_width(layout, heard.layout, weight.group) is not None
        heard.biases.add(bias.fisher.name if bias is not None and bias.is_whole else "")


_DRAWS = words("rand normal bernoulli multinomial dropout poisson")
_OPERATORS = words("__iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__")
_ADDED = words("add radd iadd sub rsub isub subtract")
_AMONG = words("cat concat concatenate stack hstack vstack where expand expand_as broadcast_to")

DEVICE: Any = Tensor.device.__get__


def _is_slice(func: Any, args: Sequence[Any]) -> bool:
    """Say whether a call looks up what no numbers choose, which gives a view."""
    return func in Lookup.targets and not any(
        isinstance(one, Tensor | list)
        for one in (args[1] if isinstance(args[1], tuple) else args[1:])
    )


def _is_change(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Say whether a call changes what it is given."""
    return is_in_place(func) or name_of(func) in _OPERATORS or kwargs.get("out") is not None


def _first_guess(shape: Sequence[int]) -> Layout:
    if len(shape) < 2:
        return Layout.channelwise(shape)
    return Layout.plain(shape) if len(shape) == 2 else Layout.stacked(shape)


def _second_guess(heard: Heard) -> Layout:
    """Choose among the layouts that calls ask for: a full factor counts more than a diagonal."""
    layout = heard.layout
    # A slice of a table leaves out entries, one of a matrix leaves out outputs.
    if heard.refused and len(layout.view) == 2:
        return Layout.transposed(layout.view)
    full = [asked for asked, rule in heard.wanted if RULES[rule].kind == "shared"]
    return next(iter([*full, *(asked for asked, _ in heard.wanted), layout]))


def _of_parameter(layout: Layout, shape: Sequence[int], group: int | None) -> Layout:
    """Return the layout of a whole parameter of which a call reads this part."""
    if group is not None:
        return Layout.stacked_transposed(shape) if layout.is_transposed else Layout.stacked(shape)
    if prod(layout.view) == prod(shape):
        if not layout.keeps_order:
            return layout
        return Layout(tuple(shape), tuple(range(len(shape))), layout.matrix)
    if len(shape) == 2:
        return Layout.transposed(shape) if layout.is_transposed else Layout.plain(shape)
    return Layout.stacked(shape)


def _bare(arguments: Any) -> Any:
    return tree_map_only(Watched, bare, arguments)


def _numbers(value: Any) -> Any:
    """Return sizes that a forward computes as numbers, as it will have them when it runs."""
    is_sizes = isinstance(value, list | tuple) and all(isinstance(v, Unknown | int) for v in value)
    return [int(size) for size in value] if is_sizes else value


def _tensors(*arguments: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]


def _reason(func: Any, use: str, alone: bool) -> str:
    """Say what a call that cannot be observed makes of a parameter.

    Args:
        func: The function that is called.
        use: Why its rule does not take the call, or "".
        alone: Whether nothing else enters it.
    """
    if name_of(func).strip("_") in _ADDED:
        return ADDED
    if name_of(func) in _AMONG:
        return TOKEN
    if use:
        return f"{use} ({line_of_caller()}); {PLAIN}"
    if alone:
        return (
            f"another weight is computed from it by {_where(func)}: no rule for a function of a "
            f"parameter alone, so its local Fisher is taken for the identity; {PLAIN}"
        )
    return f"no rule for {_where(func)}; {PLAIN}"


def _where(func: Any) -> str:
    return f"{name_of(func)} ({line_of_caller()})"
