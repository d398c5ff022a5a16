"""From a module to an FX graph of its own forward, in which one layer is one node.

Every child is a leaf, so that containers keep their class, their hooks and their control flow.
A trace is accepted only if it cannot depend on what tracing hides: train or eval mode, arguments
left at their defaults, attributes changed on the way, constants drawn while tracing.
"""

from __future__ import annotations

import inspect
import keyword
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch
from torch import fx, nn

from sngd_compile.capture.bytecode import UncapturableError
from sngd_compile.capture.side_effects import Content, contents, module_of, same_contents
from sngd_compile.capture.tracer import LocalTracer
from sngd_compile.torch_private import ARGUMENT_CHECKS


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
    if not isinstance(getattr(module_class.forward, "__code__", None), CodeType):
        raise UncapturableError("its forward is not a Python function")
    # The source that is generated from the graph takes the module by this name.
    if "self" in list(inspect.signature(module_class.forward).parameters)[1:]:
        raise UncapturableError("an argument of its forward besides the first is called self")
    left_out = _optional_arguments(module_class)
    # A branch on `mask is None` goes one way in a trace with every argument and the other in one
    # with defaults: that both traces agree shows that there is no such branch.
    calling_forms = [None, left_out] if left_out else [None]
    traces = [
        _trace(module, module_class, training, given)
        for training in (True, False)
        for given in calling_forms
    ]
    forms = [_canonical(graph) for graph in traces]
    if left_out and (forms[0] != forms[1] or forms[2] != forms[3]):
        raise UncapturableError("its forward branches on an argument that may be None")
    if forms[0] != forms[-1]:
        raise UncapturableError("its forward differs between train and eval mode, or by chance")
    _refuse_names(traces[0], module)
    return traces[0]


def _refuse_names(graph: fx.Graph, module: nn.Module) -> None:
    """Refuse what a graph cannot name: a dot inside a name, a keyword that is no identifier."""
    for name in (name for node in graph.nodes for name in node.kwargs):
        if not is_plain(name):
            raise UncapturableError(f"its forward passes an argument by the name {name!r}")
    reads = [node for node in graph.nodes if node.op in ("get_attr", "call_module")]
    # A path is cut at its dots: `a.b` could be an attribute b of a, or one of that whole name.
    if any("." in str(node.target) for node in reads):
        for owner in module.modules():
            for name in (*owner._modules, *owner._parameters, *owner._buffers):
                if "." in name:
                    raise UncapturableError(f"the name {name!r} has a dot in it")


def is_plain(path: str) -> bool:
    """Say whether Python reads `self.<path>` as just these attributes.

    Only ASCII: Python normalises other identifiers, and so would read another name than is written.
    """
    return path.isascii() and all(
        name.isidentifier() and not keyword.iskeyword(name) for name in path.split(".")
    )


def _shown(error: Exception) -> str:
    """Name an error; with its text where code of the user's raised it, which may say more."""
    last = [*traceback.walk_tb(error.__traceback__)][-1][0]
    text = str(error).strip().splitlines()
    is_inner = module_of(last).partition(".")[0] in ("torch", "sngd_compile")
    return type(error).__name__ + (f": {text[0]}" if text and not is_inner else "")


def _optional_arguments(module_class: type[nn.Module]) -> dict[str, Any]:
    """List the arguments that are None when left out; tests of any other default raise anyway."""
    signature = inspect.signature(module_class.forward)
    return {name: None for name, p in signature.parameters.items() if p.default is None}


def _trace(
    module: nn.Module,
    module_class: type[nn.Module],
    training: bool,
    left_out: dict[str, Any] | None,
) -> fx.Graph:
    # So that a forward which counts its calls counts none of these.
    twin = twin_of(module, module_class, training)
    before = _snapshot(twin)
    try:
        with _plain_children(twin, training):
            graph = LocalTracer().trace(twin, concrete_args=left_out)
    except UncapturableError:
        raise
    except fx.proxy.TraceError as error:
        raise UncapturableError(
            "its forward branches on an activation or its shape, or iterates over one"
        ) from error
    except Exception as error:  # whatever user code raises on a proxy is a reason not to rewrite
        raise UncapturableError(
            f"its forward needs the values of tensors: on placeholders it raised {_shown(error)}"
        ) from error
    after = _snapshot(twin)
    for name in sorted(before.keys() | after.keys()):
        if not same_contents(before.get(name, []), after.get(name, [])):
            raise UncapturableError(f"its forward changes or creates self.{name}")
    return graph


def twin_of(module: nn.Module, module_class: type[nn.Module], training: bool) -> nn.Module:
    """Make a module that shares the tensors of `module` but none of its containers."""
    twin = object.__new__(module_class)
    for name, value in module.__dict__.items():
        # Cloned: a forward that changes a tensor attribute in place must not change the model's.
        twin.__dict__[name] = value.clone() if isinstance(value, torch.Tensor) else _copied(value)
    twin.__dict__["training"] = training
    for name, child in module._modules.items():
        # A reconstructed module is traced as its original, which had no Fisher layers.
        if not getattr(child, "is_part_of_forward", True):
            del twin._modules[name]
    return twin


def _copied(value: Any) -> Any:
    """Copy a container and those in it, down to what they hold."""
    if isinstance(value, dict | list | set | deque):
        value = value.copy()
    if isinstance(value, dict):
        for key, member in value.items():
            value[key] = _copied(member)
    elif isinstance(value, list | deque):
        for index, member in enumerate(value):
            value[index] = _copied(member)
    return value


@contextmanager
def _plain_children(twin: nn.Module, training: bool) -> Iterator[None]:
    """Show every child for a while in the traced mode, and as it was before reconstruction.

    A forward may read `self.child.training`, or `self.child.weight`, which stays a read.
    """
    children = [m for m in twin.modules() if m is not twin and "training" in m.__dict__]
    states = [(child, child.training, type(child)) for child in children]
    try:
        for child in children:
            child.__dict__["training"] = training
            child.__class__ = getattr(child, "original_class", type(child))
        yield
    finally:
        for child, mode, child_class in states:
            child.__dict__["training"] = mode
            child.__class__ = child_class


def _snapshot(twin: nn.Module) -> dict[str, list[Content]]:
    """List what a forward could change of its module: attributes, and containers of its class."""
    seen = {name: contents(value) for name, value in twin.__dict__.items()}
    for base in type(twin).__mro__:
        for name, value in vars(base).items():
            if isinstance(value, dict | list | set | deque):
                seen.setdefault(name, contents(value))
    return seen


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
        if node.op == "call_function" and getattr(node.target, "__name__", "") in ARGUMENT_CHECKS
    }
    # Backwards, so that what a check alone reads goes with it.
    for node in reversed(graph.nodes):
        if node.op == "call_function" and node.users and checks.issuperset(node.users):
            checks.add(node)
    return [node for node in graph.nodes if node.op != "placeholder" and node not in checks]
