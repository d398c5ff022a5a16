"""One observing node after every use of a reconstructed weight."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from sngd_compile.rules import RULES
from sngd_compile.runtime.observe import STATISTICS, observe
from sngd_compile.site import Place


def observe_(graph: fx.Graph, places: Sequence[Place]) -> None:
    """Show the activations that meet a weight to its Fisher layer.

    The node stands after the use, so that a wrong input raises the error of the original call. It
    adds to buffers that nothing else in the graph reads, so its place changes no result. A weight
    with several uses gets several nodes and one sum.
    """
    for place in places:
        for call in place.uses or ():
            STATISTICS[call.rule] = RULES[call.rule]
            with graph.inserting_after(call.node):
                training = graph.get_attr("observing")
            with graph.inserting_after(training):
                fisher = graph.get_attr(place.fisher_name)
            with graph.inserting_after(fisher):
                use = call.use
                arguments = (fisher, call.rule, use.inputs, use.geometry, training)
                graph.call_function(observe, arguments + ((call.swapped,) if call.swapped else ()))
