"""From a module to an FX graph of its own forward, in which one layer is one node.

Every child is a leaf, so that containers keep their class, their hooks and their control flow.
A trace is accepted only if it cannot depend on what tracing hides: train or eval mode, arguments
left at their defaults, attributes changed on the way, constants drawn while tracing.
"""

from __future__ import annotations

import dis
import inspect
import sys
from types import CodeType
from typing import Any

import torch
from torch import fx, nn

_UNTRACED_CALLS = frozenset({"type", "hasattr", "callable", "id", "print"})
_UNTRACED_MODES = frozenset({"is_grad_enabled", "is_autocast_enabled", "is_compiling"})


class UncapturableError(Exception):
    """The forward of a module cannot be turned into a graph; the text is the reason."""


class LocalProxy(fx.Proxy):
    """A proxy that refuses type tests: it would answer that it is no tensor."""

    @property
    def __class__(self) -> type:
        """Raise where user code asks for the type; FX itself may."""
        if sys._getframe(1).f_globals.get("__name__", "").startswith("torch."):
            return type(self)
        raise UncapturableError("its forward tests the type of an activation")

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise UncapturableError("its forward changes the type of an activation")


class LocalTracer(fx.Tracer):
    """Trace one module; its children stay calls."""

    def __init__(self) -> None:
        """Trace buffers as graph inputs too, so that their updates stay in the graph."""
        super().__init__()
        self.proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep every child as one call."""
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Stand for the value of `node`."""
        return LocalProxy(node, self)


def capture(module: nn.Module, module_class: type[nn.Module]) -> fx.Graph:
    """Trace the forward that `module_class` gives to `module`, once per mode and calling form.

    Sound because all the traces must agree: {train, eval} x {every argument given, defaults}.

    Args:
        module: The module; neither it nor its tensors are changed.
        module_class: The class whose `forward` is traced (of a reconstructed module: the original).

    Returns:
        The graph; its `get_attr` nodes name the module's own parameters and buffers.

    Raises:
        UncapturableError: With the reason, in words for the plan.
    """
    if "forward" in module.__dict__:
        raise UncapturableError("its forward was replaced on the instance")
    _refuse_untraced(module_class)
    defaults = _default_arguments(module_class)
    traces = [
        _trace(module, module_class, training, given)
        for training in (True, False)
        for given in ([None, defaults] if defaults else [None])
    ]
    forms = [_canonical(graph) for graph in traces]
    if defaults and forms[0] != forms[1]:
        raise UncapturableError("its forward branches on an argument that has a default")
    if forms[0] != forms[-1]:
        raise UncapturableError("its forward differs between train and eval mode, or by chance")
    return traces[0]


def _default_arguments(module_class: type[nn.Module]) -> dict[str, Any]:
    signature = inspect.signature(module_class.forward)
    empty = inspect.Parameter.empty
    return {name: p.default for name, p in signature.parameters.items() if p.default is not empty}


def _refuse_untraced(module_class: type[nn.Module]) -> None:
    """Refuse what tracing would answer wrongly, or drop, without an error."""
    code = getattr(module_class.forward, "__code__", None)
    if not isinstance(code, CodeType):
        raise UncapturableError("its forward is not a Python function")
    required = set(code.co_varnames[1 : code.co_argcount]) - _default_arguments(module_class).keys()
    previous = None
    for step in dis.get_instructions(code):
        if step.opname == "LOAD_GLOBAL" and step.argval in _UNTRACED_CALLS:
            raise UncapturableError(f"its forward calls {step.argval}()")
        if step.opname.startswith("LOAD_") and step.argval in _UNTRACED_MODES:
            raise UncapturableError(f"its forward asks for {step.argval}()")
        tested = previous.argval if previous and previous.opname.startswith("LOAD_FAST") else None
        if "NONE" in step.opname.split("_") and "JUMP" in step.opname and tested in required:
            raise UncapturableError(f"its forward tests whether {tested} is None")
        previous = step


def _trace(
    module: nn.Module,
    module_class: type[nn.Module],
    training: bool,
    defaults: dict[str, Any] | None,
) -> fx.Graph:
    twin = _twin(module, module_class, training)
    before = _snapshot(twin)
    try:
        graph = LocalTracer().trace(twin, concrete_args=defaults)
    except UncapturableError:
        raise
    except Exception as error:  # whatever user code raises on a proxy is a reason not to rewrite
        text = str(error).strip().splitlines()
        raise UncapturableError(
            f"tracing its forward raised {type(error).__name__}: {text[0] if text else ''}"
        ) from error
    after = _snapshot(twin)
    changed = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    if changed:
        raise UncapturableError(f"its forward changes or creates self.{changed[0]}")
    return graph


def _twin(module: nn.Module, module_class: type[nn.Module], training: bool) -> nn.Module:
    """Make a module that shares the tensors of `module` but none of its containers."""
    twin = object.__new__(module_class)
    for name, value in module.__dict__.items():
        if isinstance(value, dict | list | set):
            value = value.copy()
        elif isinstance(value, torch.Tensor):
            value = value.clone()
        twin.__dict__[name] = value
    twin.__dict__["training"] = training
    return twin


def _snapshot(twin: nn.Module) -> dict[str, object]:
    """List what a forward could change: identities, tensor versions, contents of containers."""
    seen: dict[str, object] = {}
    for name, value in twin.__dict__.items():
        members = value.items() if isinstance(value, dict) else ()
        ordered = value if isinstance(value, list | set) else ()
        contents = [(key, id(member), _version(member)) for key, member in members]
        seen[name] = (id(value), _version(value), contents, [id(member) for member in ordered])
    return seen


def _version(value: object) -> int:
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else 0


def _canonical(graph: fx.Graph) -> list[object]:
    """List the nodes without placeholders, and without the checks FX adds for fixed arguments."""
    kept = _without_argument_checks(graph)
    number = {node: index for index, node in enumerate(kept)}

    def name(node: fx.Node) -> str:
        if node.op == "placeholder":
            return f"argument {node.target}"
        return f"%{number[node]}"

    lines: list[object] = []
    for node in kept:
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: name(n))
        lines.append((node.op, str(node.target), str(arguments)))
    return lines


def _without_argument_checks(graph: fx.Graph) -> list[fx.Node]:
    checks = {
        node
        for node in graph.nodes
        if node.op == "call_function"
        and getattr(node.target, "__name__", "") in ("_assert", "_assert_is_none")
    }
    for node in reversed(graph.nodes):
        if node.op == "call_function" and node.users and checks.issuperset(node.users):
            checks.add(node)
    return [node for node in graph.nodes if node.op != "placeholder" and node not in checks]
