"""Running passes over the graph of one module."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import fx

from sngd_compile.plan.records import Place
from sngd_compile.plan.report import difference_report, graph_report

logger = logging.getLogger("sngd_compile")

Pass = Callable[[fx.Graph, Sequence[Place]], None]


def run_passes(graph: fx.Graph, places: Sequence[Place], passes: Sequence[Pass]) -> None:
    """Apply `passes` to `graph` in order; each must leave a graph that lints.

    A node that a pass creates remembers its name in `node.meta["pass"]`, which reports print.
    """
    for rewrite in passes:
        # Compared, not asked of the pass: a pass need not remember to sign its nodes.
        before = set(graph.nodes)
        with logged(rewrite.__name__, graph):
            rewrite(graph, places)
        for node in graph.nodes:
            if node not in before:
                node.meta["pass"] = rewrite.__name__
        graph.lint()


@contextmanager
def logged(name: str, graph: fx.Graph) -> Iterator[None]:
    """Show at level DEBUG what a pass did to a graph."""
    if not logger.isEnabledFor(logging.DEBUG):
        yield
        return
    before = graph_report(graph)
    yield
    logger.debug("pass %s\n%s", name, difference_report(before, graph_report(graph)))
