"""Folded weights that other code may write to: the change reaches w'.

Outside of any forward pass `.weight` is what people initialise, clamp, scale or copy into. It is
`w = w' R`, made anew at each read, so a change of it would be lost. What is read here remembers
whose weight it is; after a call that changed it, `w'` becomes what folds to what was written. Its
`.grad` is the gradient of `w`, and what is written to that reaches the gradient of `w'`.

It is not the parameter, though, and no two reads give the same tensor. So marks that are set on it
stand on the parameter, `torch.autograd.grad` by it goes by way of `w'`, and what would hang on this
tensor and be lost with it, as a hook or an optimizer does, is refused by name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from sngd_compile.errors import ModelError
from sngd_compile.modules.weight_gradients import Wanted, accumulate, gradients
from sngd_compile.modules.weight_writing import gradient, write_, write_gradient_
from sngd_compile.rules.interception import SET_DATA
from sngd_compile.rules.weight_views import bare
from sngd_compile.torch_private import (
    BASE_OF_VIEW,
    FRAMES_INSIDE_TORCH,
    PARAMETER_FLAG,
    DisableTorchFunctionSubclass,
    TensorMeta,
    tree_leaves,
    tree_map_only,
    version_of,
)
from sngd_compile.training.refresh import LocalSite

_GRADIENT: Any = Tensor.grad
_FREEZING: Any = (Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]
_BY_INPUTS: Any = {torch.autograd.grad: gradients, torch.autograd.backward: accumulate}
_HOOKS: Any = (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook)
_LEAF, _NODE = cast(Any, Tensor.is_leaf), cast(Any, Tensor.grad_fn)
_HISTORY: Any = (_LEAF.__get__, _NODE.__get__)
_KEEPING_HISTORY = ("torch.optim", "torch.autograd.graph")
"""Modules that ask for the history of a tensor to step it, or to hang something on it."""
_REGISTERING = (nn.Module.__setattr__.__code__, nn.Module.register_parameter.__code__)
_GIVE_PARAMETER = "give it the parameter, as net.parameters() does"


@dataclass(frozen=True)
class Written:
    """Half of a folded pair, or of its gradient, and where it comes from.

    Args:
        value: The folded tensor; views of it share its memory.
        site: The weight that it is half of.
        index: 0 for the weight, 1 for the bias.
        write: Takes what it shall be from now on.
        gradient: Returns its gradient, or None; absent of a view, and of a gradient.
        is_whole: Whether it is what an attribute gave, and no view of that, nor a gradient.
    """

    value: Tensor
    site: LocalSite
    index: int
    write: Callable[[Tensor], None]
    gradient: Callable[[], Tensor | None] | None = None
    is_whole: bool = False

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter behind it."""
        parameter = (self.site.weight, self.site.bias)[self.index]
        assert parameter is not None
        return parameter

    def refuse(self, what: str, remedy: str) -> None:
        """Raise what says why something cannot be done with a tensor that is computed.

        Raises:
            ModelError: With the names of the layer, of the attribute and of the parameter.
        """
        name = (self.site.weight_name, self.site.bias_name)[self.index]
        layer = self.site.fisher.name.rpartition(".")[0]
        shown = f"{layer}.{name}" if layer else name
        raise ModelError(
            f"{shown}: {what}, but .{name} of a reconstructed layer is computed anew from its "
            f"parameter .{name}_prime at each read, so this would be lost; {remedy}"
        )

    def is_part(self, other: Tensor) -> bool:
        """Say whether a tensor lies in the same memory."""
        ours, others = (t.untyped_storage().data_ptr() for t in (self.value, other))
        return ours == others and other.numel() > 0


class _LikeEveryTensor(TensorMeta):
    """Take every tensor for related: `torch.testing.assert_close` asks, as of a Parameter."""

    def __instancecheck__(cls, instance: Any) -> bool:
        """Say whether it is a tensor; `type` says whether it is writable."""
        return isinstance(instance, Tensor)


class WritableWeight(Tensor, metaclass=_LikeEveryTensor):
    """A folded weight, or a view of one, that hands on what is written to it.

    Attributes:
        origin: What it is, or is a view of.
    """

    origin: Written

    @classmethod
    @partial(torch.compiler.disable, reason="fullgraph takes weight.detach().clone()")
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute on plain tensors, hand a change on, and track views."""
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        given = [leaf for leaf in leaves if type(leaf) is WritableWeight]
        if func == _GRADIENT.__get__:
            read = given[0].origin.gradient
            return None if read is None else read()
        if func in _BY_INPUTS and kwargs.get("inputs", args[1:]):
            return _BY_INPUTS[func](*args, wanted=_wanted, **kwargs)
        _refuse_to_be_kept(given[0].origin, func)
        if given[0].origin.is_whole:
            if func in _FREEZING:
                required = next(iter([*args[1:], *kwargs.values()]), True)
                given[0].origin.parameter.requires_grad_(required)
                return given[0]
            if func is Tensor.retain_grad:
                return None  # its gradient is that of the parameter, as long as that has one
        with DisableTorchFunctionSubclass():
            if func == BASE_OF_VIEW.__get__:  # what a view is of has none itself
                return func(*args)
            # Which functions write is not listed: torch counts every write, those of views too.
            versions = [version_of(weight) for weight in given]
            result = func(*args, **kwargs)
            # `.data =` gives other memory and counts no write.
            if func == SET_DATA and type(args[0]) is WritableWeight:
                args[0].origin.write(args[1])
            for weight, version in zip(given, versions, strict=True):
                if version_of(weight) != version:
                    weight.origin.write(weight.origin.value)
            return tree_map_only(Tensor, lambda part: _tracked(part, given), result)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a mark on the parameter."""
        if name == "origin" or hasattr(Tensor, name):
            super().__setattr__(name, value)
        elif name == PARAMETER_FLAG:
            self.origin.refuse("nn.Parameter would share its memory", "give it .detach().clone()")
        elif self.origin.is_whole:
            setattr(self.origin.parameter, name, value)
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """Read a mark from the parameter."""
        if name != "origin" and self.origin.is_whole:
            asking = sys._getframe(1).f_back  # who calls `isinstance(weight, nn.Parameter)`
            if name == PARAMETER_FLAG and asking and asking.f_code in _REGISTERING:
                self.origin.refuse(
                    "a module takes it for a parameter of its own",
                    "tie weights before reconstruct (sngd.fold gives the plain network back); a "
                    "copy is nn.Parameter(weight.detach().clone())",
                )
            marks = self.origin.parameter.__dict__
            if name in marks:
                return marks[name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        """Take a mark away from the parameter."""
        target = self.origin.parameter if self.origin.is_whole else super()
        target.__delattr__(name)

    def __hash__(self) -> int:
        """Refuse to be a key: the next read gives another tensor, and neither is the parameter."""
        self.origin.refuse("it is put into a set or a dictionary", _GIVE_PARAMETER)
        return 0

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the numbers."""
        return bare(self).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Copy the numbers."""
        copied: Tensor = bare(self).__deepcopy__(memo)
        return copied

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        """Show the numbers."""
        return str(bare(self))


def writable(site: LocalSite, index: int, value: Tensor) -> Tensor:
    """Return a folded weight (index 0) or bias (1) that hands on what is written to it."""
    value = value.contiguous()  # as a parameter is, so that it has the same views

    def writable_gradient() -> Tensor | None:
        found = gradient(site, index)
        if found is None:
            return None
        return _of(found, Written(found, site, index, partial(write_gradient_, site, index)))

    write = partial(write_, site, index)
    return _of(value, Written(value, site, index, write, writable_gradient, is_whole=True))


def comes_back(value: object, module: nn.Module, name: str) -> bool:
    """Say whether a value is what an attribute gave, as after `module.weight *= 2`.

    It may be an attribute of another module that shares the parameter: ties that are tied again.
    """
    if type(value) is not WritableWeight or not value.origin.is_whole:
        return False
    own = module._parameters.get(name)
    return own is not None and value.origin.parameter is own


def _wanted(tensor: Tensor) -> Wanted | None:
    """Return whose weight or bias a tensor is; None where it is no whole one."""
    if type(tensor) is not WritableWeight or not tensor.origin.is_whole:
        return None
    return tensor.origin.site, tensor.origin.index


def _refuse_to_be_kept(origin: Written, func: Any) -> None:
    """Refuse what hangs something on this tensor, or on its place in the graph."""
    if func == _GRADIENT.__set__:
        raise ModelError(
            "the gradient of a folded weight cannot be replaced: write to it in place, or "
            "assign to the .grad of the parameter, as .weight_prime.grad"
        )
    if not origin.is_whole:
        return
    if func in _HOOKS:
        origin.refuse(
            f"{func.__name__} is called on it",
            "register it on the parameter, whose gradient is g R^T for the gradient g of the "
            "weight; to change a gradient after backward, write to .grad of this attribute",
        )
    if func in _HISTORY and _asks_for_history():
        origin.refuse("an optimizer or a hook would hold it", _GIVE_PARAMETER)


def _asks_for_history() -> bool:
    """Say whether the code that reads an attribute is that of torch which keeps what it reads."""
    frame = sys._getframe(1)
    inside = (FRAMES_INSIDE_TORCH, __name__)
    while frame.f_back and str(frame.f_globals.get("__name__", "")).startswith(inside):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")).startswith(_KEEPING_HISTORY)


def _of(value: Tensor, origin: Written) -> WritableWeight:
    weight = value.as_subclass(WritableWeight)
    weight.origin = origin
    return weight


def _tracked(part: Tensor, given: Sequence[WritableWeight]) -> Tensor:
    """Return a result; where it is a view of a writable weight, writable too."""
    if type(part) is WritableWeight:
        return part
    for weight in given:
        if weight.origin.is_part(part):
            return _of(part, replace(weight.origin, gradient=None, is_whole=False))
    return part
