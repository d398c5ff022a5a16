"""Running passes over the graph of one module."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx

from sngd_compile.site import Place

Pass = Callable[[fx.Graph, Sequence[Place]], None]


def run_passes(graph: fx.Graph, places: Sequence[Place], passes: Sequence[Pass]) -> None:
    """Apply `passes` to `graph` in order; each must leave a graph that lints.

    A node that a pass creates remembers its name in `node.meta["pass"]`, which dumps print.
    """
    for rewrite in passes:
        before = set(graph.nodes)
        rewrite(graph, places)
        for node in graph.nodes:
            if node not in before:
                node.meta["pass"] = rewrite.__name__
        graph.lint()
