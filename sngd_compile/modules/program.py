"""The executable form of a module's graph: the Python that FX prints, run on the module itself."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from itertools import count
from typing import Any

from torch import fx

_serial = count()


class Program:
    """A graph and the function generated from it; copies share it, files leave it out.

    Parameters stay attributes of the module, so moving, sharding or replacing them needs no new
    program. What a file lacks is captured again on loading.

    Args:
        graph: Reads its parameters by `get_attr`, calls children by `call_module`.
    """

    def __init__(self, graph: fx.Graph) -> None:
        """Compile the graph's Python source."""
        self.graph = graph
        code = graph.python_code(root_module="self")
        self.source = code.src.strip()
        filename = f"<sngd_compile program {next(_serial)}>"
        lines = self.source.splitlines(keepends=True)
        linecache.cache[filename] = (len(self.source), None, lines, filename)
        namespace = dict(code.globals)
        exec(compile(self.source, filename, "exec"), namespace)
        self.forward: Callable[..., Any] = namespace["forward"]

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        """Share: a program has no state."""
        return self

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        """Leave nothing in a file."""
        return _nothing, ()


def _nothing() -> None:
    """Stand for a program in a file."""
