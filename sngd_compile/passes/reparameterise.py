"""`w = w' R`: a local Fisher layer between the new parameters and every use of the old ones."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import fx

from sngd_compile.fisher.reparameterise import fold
from sngd_compile.plan.records import Place


def reparameterise_(graph: fx.Graph, places: Sequence[Place]) -> None:
    """Let every use of a reconstructed weight read `fold(fisher, w', b')` instead.

    Sound for any call: it still gets the ordinary weight, so the function is the same, and by the
    chain rule the gradient that reaches `w'` is `g R^T`.

    Source: arXiv 2412.07441, `w = G^(-1/2) w'`.
    """
    for place in places:
        # Before the first call, since a weight and its bias may be read anywhere.
        first = next(node for node in graph.nodes if node.op != "placeholder")
        with graph.inserting_before(first):
            fisher = graph.get_attr(place.fisher_name)
            weight = graph.get_attr(f"{place.weight_name}_prime")
            bias = graph.get_attr(f"{place.bias_name}_prime") if place.bias_name else None
            folded = graph.call_function(fold, (fisher, weight, bias))
        _replace(graph, place.weight_name, folded, 0)
        if place.bias_name:
            _replace(graph, place.bias_name, folded, 1)


def _replace(graph: fx.Graph, name: str, folded: fx.Node, index: int) -> None:
    with graph.inserting_after(folded):
        half = graph.call_function(operator.getitem, (folded, index))
    for node in list(graph.nodes):
        if node.op == "get_attr" and node.target == name:
            node.replace_all_uses_with(half)
            graph.erase_node(node)
            half.name = node.name  # made by FX: an identifier, and no longer taken
