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
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from sngd_compile.capture.bytecode import UncapturableError, is_python
from sngd_compile.capture.side_effects import (
    Content,
    FunctionWithoutProxiesError,
    contents,
    module_of,
    same_contents,
)
from sngd_compile.capture.tracer import LocalTracer, kept_as_calls, marked_functions
from sngd_compile.capture.twin import TRACER, Twins
from sngd_compile.torch_private import ARGUMENT_CHECKS

_BOOKKEEPING = frozenset({"forward", *vars(nn.Module())})
"""Attributes on which no graph depends: that of train mode is the same as that of eval mode."""


@dataclass(frozen=True)
class Captured:
    """What is known of a module's forward.

    Args:
        graph: Of its calls.
        names_read: The attributes of the module on which the graph may depend.
    """

    graph: fx.Graph
    names_read: frozenset[str]


def capture(module: nn.Module, module_class: type[nn.Module]) -> Captured:
    """Trace the forward that `module_class` gives to `module`, once per mode and calling form.

    Sound because all the traces must agree: {train, eval} x {every argument given, defaults}.

    Args:
        module: The module; neither it nor its tensors are changed.
        module_class: The class whose `forward` is traced (of a reconstructed module: the original).

    Returns:
        The graph, whose `get_attr` nodes name the module's own parameters and buffers.

    Raises:
        UncapturableError: With the reason, in words for the plan.
    """
    names_read: set[str] = set()
    try:
        graph = _agreed(module, module_class, names_read)
    except UncapturableError as error:
        error.names_read = frozenset(names_read - _BOOKKEEPING)
        raise
    return Captured(graph, frozenset(names_read - _BOOKKEEPING))


def _agreed(module: nn.Module, module_class: type[nn.Module], names_read: set[str]) -> fx.Graph:
    """Return the graph on which all traces agree."""
    if "forward" in module.__dict__:
        raise UncapturableError("its forward was replaced on the instance")
    if not is_python(module_class.forward):
        raise UncapturableError("its forward is not a Python function")
    # The source that is generated from the graph takes the module by this name.
    if "self" in list(inspect.signature(module_class.forward).parameters)[1:]:
        raise UncapturableError("an argument of its forward besides the first is called self")
    left_out = _optional_arguments(module_class)
    # A branch on `mask is None` goes one way in a trace with every argument and the other in one
    # with defaults: that both traces agree shows that there is no such branch.
    calling_forms = [None, left_out] if left_out else [None]
    traces = [
        _trace(module, module_class, training, given, names_read)
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
    names_read: set[str],
) -> fx.Graph:
    arguments = module, module_class, training, left_out, names_read
    try:
        return _trace_once(*arguments, marked=marked_functions())
    except FunctionWithoutProxiesError:
        with kept_as_calls(module_class.forward):
            return _trace_once(*arguments, marked=())


def _trace_once(
    module: nn.Module,
    module_class: type[nn.Module],
    training: bool,
    left_out: dict[str, Any] | None,
    names_read: set[str],
    marked: Container[object],
) -> fx.Graph:
    tracer = LocalTracer(marked)
    # So that a forward which counts its calls counts none of these.
    twin = Twins(tracer, training).root(module, module_class)
    before = _snapshot(twin)
    try:
        graph = tracer.trace(twin, concrete_args=left_out)
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
    finally:
        names_read |= tracer.names_read
    after = _snapshot(twin)
    for name in sorted(before.keys() | after.keys()):
        if not same_contents(before.get(name, []), after.get(name, [])):
            raise UncapturableError(f"its forward changes or creates self.{name}")
    return graph


def _snapshot(twin: nn.Module) -> dict[str, list[Content]]:
    """List what a forward could change of its module: attributes, and containers of its class."""
    own = twin.__dict__.items()
    seen = {name: contents(value) for name, value in own if name != TRACER}
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
