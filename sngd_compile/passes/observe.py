"""One observing node after every use of a reconstructed weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from sngd_compile.fisher.observe import observe
from sngd_compile.fisher.observe_gradient import observe_gradient
from sngd_compile.plan.records import GraphUse, Place


def observe_(graph: fx.Graph, places: Sequence[Place]) -> None:
    """Show the activations that a weight multiplies to its Fisher layer.

    The node stands after the use, so that a wrong input raises the error of the original call. It
    adds to buffers that nothing else in the graph reads, so its place changes no result. A weight
    with several uses gets several nodes and one sum. Where the Fisher layer has an output side, a
    second node shows it the gradient of the call's output, in the backward pass.
    """
    for place in places:
        for call in place.uses or ():
            # The one that the fold reads, before all calls.
            fisher = next(n for n in graph.nodes if n.target == place.fisher_name)
            with graph.inserting_after(call.node):
                training = graph.get_attr("observing")
            with graph.inserting_after(training):
                _observe_inputs_(graph, place, call, fisher, training)
            if place.definition.has_output_side:
                _observe_gradient_(graph, call, fisher, training)


def _observe_inputs_(
    graph: fx.Graph, place: Place, call: GraphUse, fisher: fx.Node, training: fx.Node
) -> None:
    """Show the inputs of a call; to a local Fisher that its outputs weigh, its output with them."""
    use = call.use
    arguments = (fisher, call.rule, use.inputs, use.geometry, training)
    swapped = (call.swapped,) if call.swapped else ()
    options: dict[str, Any] = {"output": call.node} if place.definition.sees_outputs else {}
    graph.call_function(observe, (*arguments, *swapped), options)


def _observe_gradient_(graph: fx.Graph, call: GraphUse, fisher: fx.Node, training: fx.Node) -> None:
    """Let whoever reads a call read `observe_gradient` of it, the call's output itself."""
    arguments = (fisher, call.node, call.rule, call.use.geometry, training)
    with graph.inserting_after(training):
        seen = graph.call_function(observe_gradient, arguments)
    call.node.replace_all_uses_with(seen, lambda user: user is not seen)
