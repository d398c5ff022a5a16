"""One observing node after every use of a reconstructed weight."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from sngd_compile.fisher.observe import STATISTICS, observe
from sngd_compile.fisher.observe_gradient import observe_gradient
from sngd_compile.fisher.observe_units import observe_units
from sngd_compile.plan.records import GraphUse, Place
from sngd_compile.rules import RULES


def observe_(graph: fx.Graph, places: Sequence[Place]) -> None:
    """Show the activations that meet a weight to its Fisher layer.

    The node stands after the use, so that a wrong input raises the error of the original call. It
    adds to buffers that nothing else in the graph reads, so its place changes no result. A weight
    with several uses gets several nodes and one sum. Where the Fisher layer has an output side, a
    second node shows it the gradient of the call's output, in the backward pass.
    """
    for place in places:
        for call in place.uses or ():
            STATISTICS[call.rule] = RULES[call.rule]
            with graph.inserting_after(call.node):
                training = graph.get_attr("observing")
            with graph.inserting_after(training):
                fisher = graph.get_attr(place.fisher_name)
            with graph.inserting_after(fisher):
                _observe_inputs_(graph, place, call, fisher, training)
            if place.has_output_side:
                _observe_gradient_(graph, call, fisher, training)


def _observe_inputs_(
    graph: fx.Graph, place: Place, call: GraphUse, fisher: fx.Node, training: fx.Node
) -> None:
    """Show the inputs of a call; to a local Fisher that its outputs weigh, its output with them."""
    use = call.use
    if place.sees_outputs:
        graph.call_function(
            observe_units, (fisher, call.rule, use.inputs, call.node, use.geometry, training)
        )
        return
    arguments = (fisher, call.rule, use.inputs, use.geometry, training)
    graph.call_function(observe, arguments + ((call.swapped,) if call.swapped else ()))


def _observe_gradient_(graph: fx.Graph, call: GraphUse, fisher: fx.Node, training: fx.Node) -> None:
    """Let whoever reads a call read `observe_gradient` of it, the call's output itself."""
    arguments = (fisher, call.node, call.rule, call.use.geometry, training)
    with graph.inserting_after(fisher):
        seen = graph.call_function(observe_gradient, arguments)
    call.node.replace_all_uses_with(seen, lambda user: user is not seen)
