"""Tracing one module's own forward: its children stay calls, and what a graph drops is refused."""

from __future__ import annotations

import dis
import math
import operator
import sys
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from sngd_compile.capture.bytecode import UncapturableError, words
from sngd_compile.capture.side_effects import Watch, module_of
from sngd_compile.torch_private import FRAMES_INSIDE_TORCH, functions_kept_as_calls, tree_leaves

_INNER = (
    "sngd_compile.",
    FRAMES_INSIDE_TORCH,
    "torch.functional",
    "torch.fx.",
    "torch.nn.functional",
    "torch.overrides",
)
"""Modules whose frames stand between a forward and the tracer."""

_STATIC = frozenset(
    ("dtype", "device", "shape", "ndim", "is_cuda", "size", "dim", "numel", "is_floating_point")
)
"""Attributes of a parameter that its values do not change."""

_AUGMENTED = words(
    "iadd isub imul imatmul itruediv ifloordiv imod ipow ilshift irshift iand ixor ior"
)


class LocalProxy(fx.Proxy):
    """A proxy that refuses questions to which it would give an answer of its own."""

    @property
    def __class__(self) -> type:
        """Raise where user code asks for the type: it would hear that this is no tensor."""
        caller = sys._getframe(1)
        instruction = dis.opname[caller.f_code.co_code[caller.f_lasti]]
        # Functions of torch written in C ask on behalf of the caller; torch.is_tensor is Python.
        if (
            Watch.calling() is isinstance
            or "CALL" not in instruction
            or module_of(caller) == "torch"
        ):
            _refuse_outside_torch("tests the type of an activation")
        return type(self)

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise UncapturableError("its forward changes the type of an activation")

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        """Refuse what a tensor or a dictionary lacks: `getattr(x, name, default)` asks for it."""
        if not hasattr(torch.Tensor, name) and not hasattr(dict, name):
            _refuse_outside_torch(f"reads .{name} of an activation")
        return LocalAttribute(self, name)

    def __hash__(self) -> int:
        """Refuse to be looked up in a dictionary or a set, which would not hold it."""
        _refuse_outside_torch("looks an activation up in a dictionary or a set")
        return id(self)

    def __repr__(self) -> str:
        """Refuse to be written as text."""
        _refuse_outside_torch("writes an activation as text")
        return super().__repr__()


def _augmented(name: str) -> Callable[[Any, Any], Any]:
    """Make the function that stands in a graph for an augmented assignment such as `x += y`.

    FX takes that for `x = x + y`, and who else holds x keeps the old value. `operator.iadd` in a
    graph is printed as a statement, which changes the variable of a number for its other readers.
    """
    operation = getattr(operator, name)

    def augmented(left: Any, right: Any) -> Any:
        return operation(left, right)

    augmented.__name__ = augmented.__qualname__ = name
    augmented.__dict__["operation"] = operation
    return augmented


def _in_place(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in _AUGMENTED:
    setattr(LocalProxy, f"__{_name}__", _in_place(_augmented(_name)))


class LocalAttribute(LocalProxy, fx.proxy.Attribute):
    """An attribute of an activation; a method call once it is called."""


class ParameterProxy(LocalProxy):
    """A proxy of a parameter, whose dtype, device and sizes are known while tracing.

    A module that is moved or cast is captured again, so a branch on them stays right.
    """

    def __init__(self, node: fx.Node, tracer: fx.Tracer, parameter: Tensor) -> None:
        """Keep the parameter."""
        super().__init__(node, tracer)
        self.parameter = parameter

    def __getattr__(self, name: str) -> Any:
        """Answer what does not depend on the values."""
        if name in _STATIC:
            return getattr(self.parameter, name)
        return super().__getattr__(name)


class LocalTracer(fx.Tracer):
    """Trace one module; its children stay calls.

    Args:
        marked: See `Watch`.

    Attributes:
        names_read: The attributes of the module that its forward asked for.
        proxies_of_tensors: Of parameters and buffers, by name.
    """

    def __init__(self, marked: Container[object]) -> None:
        """Trace buffers as graph inputs too, so that their updates stay in the graph."""
        super().__init__()
        self.marked = marked
        self.proxy_buffer_attributes = True
        self.names_read: set[str] = set()
        self.proxies_of_tensors: dict[str, fx.Proxy] = {}

    def trace(
        self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None
    ) -> fx.Graph:
        """Trace the forward of a twin, which calls back by itself: no other module is touched.

        Args:
            root: A twin of this tracer.
            concrete_args: Arguments that are no placeholders.
        """
        assert isinstance(root, nn.Module)
        self.root, self.graph = root, fx.Graph(tracer_cls=type(self))
        named = dict(root.named_modules())
        self.submodule_paths = {module: name for name, module in named.items()}
        held = [(name, key, v) for name, m in named.items() for key, v in m.__dict__.items()]
        self.tensor_attrs = {
            value: f"{name}.{key}" if name else key
            for name, key, value in held
            if isinstance(value, Tensor | torch.ScriptObject)
        }
        forward, arguments = self.create_args_for_root(type(root).forward, True, concrete_args)
        self.create_node("output", "output", (self.create_arg(forward(*arguments)),), {})
        self.submodule_paths = None
        return self.graph

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: dict[str, Any] | tuple[Any, ...] | None = None,
    ) -> tuple[Any, list[Any]]:
        """Watch the forward, and nothing else, while it runs."""
        forward, arguments = super().create_args_for_root(root_fn, is_module, concrete_args)

        def watched(*args: Any) -> Any:
            with Watch(self.marked):
                return forward(*args)

        return watched, arguments

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Remember the file and line of the call, for a reason in the plan, and whose they are."""
        node = super().create_node(*args, **kwargs)
        frame = _frame_of(sys._getframe(1))
        node.meta["line"] = _line_of(frame)
        node.meta["is_of_torch"] = frame is not None and module_of(frame).startswith("torch.")
        return node

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep every child as one call."""
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Stand for the value of `node`."""
        parameter = self.root._parameters.get(str(node.target)) if node.op == "get_attr" else None
        if parameter is None:
            return LocalProxy(node, self)
        return ParameterProxy(node, self, parameter)


def _frame_of(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame that is a forward's own."""
    while frame is not None and module_of(frame).startswith(_INNER):
        frame = frame.f_back
    return frame


def _line_of(frame: FrameType | None) -> str:
    """Name file and line of a frame."""
    return "" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def line_of_caller() -> str:
    """Name file and line of the innermost frame that is a forward's own."""
    return _line_of(_frame_of(sys._getframe(1)))


def _refuse_outside_torch(reason: str) -> None:
    """Raise where user code, not torch, called the caller."""
    if not module_of(sys._getframe(2)).startswith(("torch.", "sngd_compile.")):
        raise UncapturableError(f"its forward {reason}")


_patching = threading.RLock()


def marked_functions() -> set[object]:
    """List the functions, or their code, that `torch.fx.wrap` has marked."""
    found = [table[name] for table, name in functions_kept_as_calls() if name in table]
    return {getattr(function, "__code__", function) for function in found}


@contextmanager
def kept_as_calls(forward: Callable[..., Any]) -> Iterator[None]:
    """Let functions that cannot take a placeholder become nodes when they are given one.

    Those are of `math`, and what a user marked by `torch.fx.wrap`. They are replaced where they are
    found, for other threads too, for which the replacement calls the function: so only where a
    forward needs it.
    """
    tables = [vars(math), getattr(forward, "__globals__", {})]
    wanted = [(table, name) for table in tables for name, f in table.items() if _is_of_math(f)]
    wanted += functions_kept_as_calls()
    with _patching:
        before = [(table, name, table[name]) for table, name in wanted if name in table]
        for table, name, function in before:
            table[name] = _kept_as_call(function)
        try:
            yield
        finally:
            for table, name, function in before:
                table[name] = function


def _is_of_math(function: object) -> bool:
    return function is not None and function is vars(math).get(getattr(function, "__name__", ""))


def _kept_as_call(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves = tree_leaves((args, kwargs))
        proxy = next((leaf for leaf in leaves if type(leaf) in _PROXIES), None)
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", function, args, kwargs)

    return call


_PROXIES = frozenset((LocalProxy, LocalAttribute, ParameterProxy))
