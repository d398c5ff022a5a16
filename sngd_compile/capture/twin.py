"""A twin of a module for one trace: the same tensors, and calls and reads that go to the tracer.

`torch.fx` has every module of the process do that while it traces, in other threads too. Here only
twins do, which nobody else holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

TRACER = "tracer of sngd_compile"
"""Key of the tracer in the dictionary of a twin: no name that Python could read."""


class Traced(nn.Module):
    """Mixed into the class of a twin."""

    original_class: type[nn.Module]

    @property
    def __class__(self) -> type:
        """The class that user code expects."""
        return self.original_class

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("the class of a module changes while its forward is traced")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Become a node of the graph."""
        # No forward to fall back on: every child is a leaf.
        return self.__dict__[TRACER].call_module(self, None, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        """Give a proxy for a parameter or a buffer."""
        value = super().__getattr__(name)
        tracer = self.__dict__[TRACER]
        return tracer.getattr(name, value, tracer.proxies_of_tensors)

    def __init_subclass__(cls) -> None:
        """Keep the original class's own hook out: the class made here is no further subclass."""


class TracedRoot(Traced):
    """Mixed into the class of the module whose forward is traced."""

    def __getattribute__(self, name: str) -> Any:
        """Note what the forward reads, there or not."""
        own = super().__getattribute__("__dict__")
        if TRACER in own:
            own[TRACER].names_read.add(name)
        return super().__getattribute__(name)


class Twins:
    """Make the twins of a module and of all modules below it.

    Args:
        tracer: Is asked for calls and reads.
        training: The mode they are in.
    """

    def __init__(self, tracer: Any, training: bool) -> None:
        self.tracer, self.training = tracer, training
        self.made: dict[nn.Module, nn.Module] = {}
        self.classes: dict[tuple[type, type], type] = {}

    def root(self, module: nn.Module, module_class: type[nn.Module]) -> nn.Module:
        """Return a twin that shares the tensors of a module but none of its containers."""
        twin = self._make(module, module_class, TracedRoot)
        for name, value in twin.__dict__.items():
            if isinstance(value, torch.Tensor):
                # A forward that changes a tensor attribute in place must not change the model's.
                twin.__dict__[name] = value.clone()
            elif name not in ("_modules", TRACER):
                twin.__dict__[name] = copied(value, self.made)
        # Its own, even of a module that never had one.
        twin.__dict__["training"] = self.training
        return twin

    def _make(
        self, module: nn.Module, module_class: type[nn.Module], mixin: type[Traced]
    ) -> nn.Module:
        twin: nn.Module = object.__new__(self._class_of(module_class, mixin))
        self.made[module] = twin
        twin.__dict__.update(module.__dict__)
        if "training" in twin.__dict__:
            twin.__dict__["training"] = self.training
        twin.__dict__["_modules"] = {
            name: child if child is None else self._child(child)
            for name, child in module._modules.items()
            # A reconstructed module is traced as its original, which had no Fisher layers.
            if getattr(child, "is_part_of_forward", True)
        }
        twin.__dict__[TRACER] = self.tracer
        return twin

    def _child(self, child: nn.Module) -> nn.Module:
        if child in self.made:
            return self.made[child]
        if isinstance(child, torch.jit.ScriptModule):
            # It is more than a dictionary; a call of it is a node all the same.
            return self._make_opaque(child)
        # A forward may read `self.child.weight`, which stays a read: so as it was before.
        return self._make(child, getattr(child, "original_class", type(child)), Traced)

    def _make_opaque(self, child: nn.Module) -> nn.Module:
        twin: nn.Module = object.__new__(self._class_of(nn.Module, Traced))
        self.made[child] = twin
        twin.__dict__.update(nn.Module().__dict__)
        twin.__dict__[TRACER] = self.tracer
        return twin

    def _class_of(self, original: type[nn.Module], mixin: type[Traced]) -> type[Any]:
        known = self.classes.get((original, mixin))
        if known is None:
            namespace: dict[str, Any] = {"original_class": original}
            known = type(f"Traced{original.__name__}", (mixin, original), namespace)
            self.classes[original, mixin] = known
        return known


def copied(value: Any, twins: Mapping[nn.Module, nn.Module]) -> Any:
    """Copy a container and those in it, down to what they hold; a module becomes its twin."""
    if isinstance(value, nn.Module):
        return twins.get(value, value)
    if isinstance(value, dict | list | set | deque):
        value = value.copy()
    if isinstance(value, dict):
        for key, member in value.items():
            value[key] = copied(member, twins)
    elif isinstance(value, list | deque):
        for index, member in enumerate(value):
            value[index] = copied(member, twins)
    elif type(value) is tuple:
        value = tuple(copied(member, twins) for member in value)
    return value
