"""`(W' R) x~` or `W' (R x~)`: the root acts on the weight or on the rows, by their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import fx

from sngd_compile.fisher.observe_gradient import observe_gradient
from sngd_compile.fisher.reparameterise import fold, local_embedding, local_linear
from sngd_compile.plan.records import GraphUse, Place
from sngd_compile.rules.embedding import Embedding


def associate_(graph: fx.Graph, places: Sequence[Place]) -> None:
    """Replace a call of a folded weight by one that picks the cheaper side.

    A linear layer becomes `local_linear`, an embedding `local_embedding`, which folds only the rows
    it looks up. Sound because the product is associative: same function, same gradients. Other
    calls keep the weight side: a convolution has far more rows than outputs.

    Source: docs/method.md, cost.
    """
    replaced: dict[fx.Node, fx.Node] = {}
    for place in places:
        for call in place.uses or ():
            # A swapped use multiplies by the transpose, on which the root acts from the other side.
            if call.swapped and call.rule != Embedding.name:
                continue
            source = cast(fx.Node, call.use.inputs[0])
            # An earlier call of this pass may have made the input of this one anew.
            source = _as_seen(replaced.get(source, source))
            local = _local(graph, place, call, source)
            if local is not None:
                call.node.replace_all_uses_with(local)
                graph.erase_node(call.node)
                replaced[call.node] = local
    # Backwards, so that the readers of a fold are gone before the fold is looked at. What is not
    # part of a fold stays even without a reader: it may have a side effect.
    for node in reversed(graph.nodes):
        if not node.users and _reads_fold(node):
            graph.erase_node(node)


def _as_seen(node: fx.Node) -> fx.Node:
    """Return what stands for the output of a call whose gradient is observed."""
    return next((user for user in node.users if user.target is observe_gradient), node)


def _local(graph: fx.Graph, place: Place, call: GraphUse, source: fx.Node) -> fx.Node | None:
    """Insert the call that takes the place of another; None where that one stays."""
    fisher, weight_prime, bias_prime = _fold_of(graph, place).args
    with graph.inserting_before(call.node):
        if call.rule == Embedding.name:
            padding = Embedding.padding(call.use)
            return graph.call_function(local_embedding, (fisher, source, weight_prime, padding))
        if call.use.is_linear and (call.use.bias is None or bias_prime is not None):
            return graph.call_function(local_linear, (fisher, source, weight_prime, bias_prime))
    return None


def _fold_of(graph: fx.Graph, place: Place) -> fx.Node:
    """Find the node that folds the weight of a place."""
    prime = f"{place.weight_name}_prime"
    folds: list[fx.Node] = [node for node in graph.nodes if node.target is fold]
    return next(node for node in folds if cast(fx.Node, node.args[1]).target == prime)


def _reads_fold(node: fx.Node) -> bool:
    """Say whether a node is a folded pair, one half of it, or a view of that."""
    while node.op in ("call_function", "call_method") and node.target is not fold:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            return False
        node = source
    return node.target is fold
