"""Folded weights that other code may write to: the change reaches w'.

Outside of any forward pass `.weight` is what people initialise, clamp, scale or copy into. It is
`w = w' R`, made anew at each read, so a change of it would be lost. What is read here remembers
whose weight it is; after a call that changed it, `w'` becomes what folds to what was written. Its
`.grad` is the gradient of `w`, and what is written to that reaches the gradient of `w'`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sngd_compile.errors import ModelError
from sngd_compile.modules.folded_weight import SET_DATA
from sngd_compile.modules.weight_writing import gradient, write_, write_gradient_
from sngd_compile.rules.weight_views import bare
from sngd_compile.torch_private import (
    BASE_OF_VIEW,
    DisableTorchFunctionSubclass,
    TensorMeta,
    tree_leaves,
    tree_map_only,
    version_of,
)
from sngd_compile.training.refresh import LocalSite

_GRADIENT: Any = Tensor.grad
_FREEZING: Any = (Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Written:
    """Half of a folded pair, or of its gradient, and where it comes from.

    Args:
        value: The folded tensor; views of it share its memory.
        write: Takes what it shall be from now on.
        gradient: Returns its gradient, or None; absent of a view, and of a gradient.
        place: The module and the attribute that gave it; None of those.
    """

    value: Tensor
    write: Callable[[Tensor], None]
    gradient: Callable[[], Tensor | None] | None = None
    place: tuple[nn.Module, str | None] | None = None

    def require_gradient(self, required: bool) -> None:
        """Let the parameter behind it be trained, or not."""
        module, name = self.place or (None, None)
        parameter = module._parameters[name] if module is not None and name is not None else None
        if parameter is not None:
            parameter.requires_grad_(required)

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
        if func == _GRADIENT.__set__:
            raise ModelError(
                "the gradient of a folded weight cannot be replaced: write to it in place, or "
                "assign to the .grad of the parameter, as .weight_prime.grad"
            )
        if func in _FREEZING and given[0].origin.place is not None:
            given[0].origin.require_gradient(next(iter([*args[1:], *kwargs.values()]), True))
            return given[0]
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
        return _of(found, Written(found, partial(write_gradient_, site, index)))

    place = site.module, (site.weight_name, site.bias_name)[index]
    return _of(value, Written(value, partial(write_, site, index), writable_gradient, place))


def comes_back(value: object, module: nn.Module, name: str) -> bool:
    """Say whether a value is what an attribute gave, as after `module.weight *= 2`."""
    return type(value) is WritableWeight and value.origin.place == (module, name)


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
            return _of(part, replace(weight.origin, gradient=None, place=None))
    return part
