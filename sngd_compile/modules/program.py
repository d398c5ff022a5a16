"""The executable form of a module's graph: the Python that FX prints, run on the module itself."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any
from weakref import WeakValueDictionary, finalize

from torch import fx, nn

from sngd_compile.capture.module_graph import is_plain

_serial = count()
_functions: WeakValueDictionary[Any, Callable[..., Any]] = WeakValueDictionary()
"""The functions that any program runs, by their source and what its names mean."""


class Program:
    """A graph and the function generated from it; copies share it, files leave it out.

    Parameters stay attributes of the module, so moving, sharding or replacing them needs no new
    program. What a file lacks is captured again on loading.

    No name of an attribute is executed: a name that Python would not read as just that attribute
    stands in the source as a quoted literal.

    Args:
        graph: Reads its parameters by `get_attr`, calls children by `call_module`; None where the
            module's own forward must run.
        names_read: The attributes of the module on which the graph, or that there is none, depends.
    """

    forward: Callable[..., Any] | None = None

    def __init__(self, graph: fx.Graph | None, names_read: frozenset[str]) -> None:
        """Compile the graph's Python source."""
        self.graph, self.names_read = graph, names_read
        if graph is None:
            return
        code = _with_quoted_names(graph).python_code(root_module="self")
        self.source = code.src.strip()
        self.forward = _function_of(self.source, code.globals)

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        """Share: a program has no state."""
        return self

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        """Leave nothing in a file."""
        # The class may have changed when the file is read, and what its forward says then counts.
        return _nothing, ()


def _function_of(source: str, names: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function `forward` of a source, one for all that are equal.

    A compiler keeps what it has compiled by the code of a function: equal layers, as the blocks of
    a transformer or the networks of several trials, are compiled once, like plain ones.

    Args:
        source: Of the function.
        names: What its other names mean.
    """
    # What the names mean is kept alive by the function, so an identity stays what it is.
    key = source, tuple((name, id(value)) for name, value in sorted(names.items()))
    known = _functions.get(key)
    if known is not None:
        return known
    filename = f"<sngd_compile program {next(_serial)}>"
    lines = source.splitlines(keepends=True)
    # Without a time the entry is kept, as no file of that name is looked for.
    linecache.cache[filename] = (len(source), None, lines, filename)
    namespace = dict(names)
    exec(compile(source, filename, "exec"), namespace)
    made: Callable[..., Any] = namespace["forward"]
    # For tracebacks, as long as there can be any.
    finalize(made, linecache.cache.pop, filename, None)
    _functions[key] = made
    return made


def _with_quoted_names(graph: fx.Graph) -> fx.Graph:
    """Return a graph that calls `attribute` for each name, if one is not a plain identifier.

    FX prints `self.heads.class`, and a name between quotes without escaping what it holds.
    """
    if all(is_plain(node.target) for node in graph.nodes if _reads_attribute(node)):
        return graph
    # Plain names too: FX lets go of an argument, as `self` is one here, after its last reader.
    printed = fx.Graph()
    # FX adds this argument where the graph has none of that name.
    module = printed.placeholder("self")
    copied: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if not _reads_attribute(node):
            copied[node] = printed.node_copy(node, lambda n: copied[n])
            continue
        value = module
        for name in node.target.split("."):
            value = printed.call_function(attribute, (value, name))
        if node.op == "call_module":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: copied[n])
            value = printed.call_function(call, (value, *args), kwargs)
        copied[node] = value
    return printed


def _reads_attribute(node: fx.Node) -> bool:
    return node.op in ("get_attr", "call_module")


def attribute(owner: nn.Module, name: str) -> Any:
    """Read an attribute whose name comes as a literal; FX prints the builtin `getattr` as text."""
    return getattr(owner, name)


def call(child: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
    """Call a child module that `attribute` has read."""
    return child(*args, **kwargs)


def _nothing() -> None:
    """Stand for a program in a file."""
