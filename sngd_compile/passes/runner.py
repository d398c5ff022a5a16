"""Running passes over the graph of one module."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import fx

from sngd_compile.plan.records import Place
from sngd_compile.plan.report import difference_report, graph_report

logger = logging.getLogger("sngd_compile")

MOST_CALLS = 3
"""Calls that are named behind a node; how many more there are stands behind them."""

Pass = Callable[[fx.Graph, Sequence[Place]], None]


def run_passes(graph: fx.Graph, places: Sequence[Place], passes: Sequence[Pass]) -> None:
    """Apply `passes` to `graph` in order; each must leave a graph that lints.

    A node that a pass creates remembers its name in `node.meta["pass"]`, and in `node.meta["for"]`
    the rules and the lines of the calls that it is there for; reports print both.
    """
    for rewrite in passes:
        # Compared, not asked of the pass: a pass need not remember to sign its nodes.
        before = set(graph.nodes)
        with logged(rewrite.__name__, graph):
            rewrite(graph, places)
        for node in graph.nodes:
            if node not in before:
                node.meta["pass"] = rewrite.__name__
        _say_why(graph, places)
        graph.lint()


def _say_why(graph: fx.Graph, places: Sequence[Place]) -> None:
    """Note for each inserted node which calls of its weight it is there for."""
    reasons: dict[fx.Node, str] = {}
    of_names = {name: _reason(place) for place in places for name in _names(place)}
    for node in graph.nodes:
        if "pass" not in node.meta:
            continue
        # What it reads tells the weight: every inserted node hangs from the Fisher layer or w'.
        read = [reasons[known] for known in node.all_input_nodes if known in reasons]
        reason = of_names.get(str(node.target)) if node.op == "get_attr" else next(iter(read), None)
        if reason is not None:
            reasons[node] = node.meta["for"] = reason


def _names(place: Place) -> list[str]:
    primes = (place.weight_name, place.bias_name)
    return [place.fisher_name, *(f"{name}_prime" for name in primes if name)]


def _reason(place: Place) -> str:
    calls = [(use.rule, _line_of(use.node)) for use in place.uses or ()]
    said = [f"{rule} at {line}" if line else rule for rule, line in dict.fromkeys(calls)]
    more = [f"{len(said) - MOST_CALLS} more"] if len(said) > MOST_CALLS else []
    return ", ".join([*said[:MOST_CALLS], *more])


def _line_of(call: fx.Node) -> str:
    """Name the line of the model; a forward of torch's own is none of it."""
    return "" if call.meta.get("is_of_torch") else str(call.meta.get("line", ""))


@contextmanager
def logged(name: str, graph: fx.Graph) -> Iterator[None]:
    """Show at level DEBUG what a pass did to a graph."""
    if not logger.isEnabledFor(logging.DEBUG):
        yield
        return
    before = graph_report(graph)
    yield
    logger.debug("pass %s\n%s", name, difference_report(before, graph_report(graph)))
