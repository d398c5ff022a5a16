"""One observing node after every use of a reconstructed weight."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from sngd_compile.runtime.observe import observe
from sngd_compile.site import Site


def observe_(graph: fx.Graph, sites: Sequence[Site]) -> None:
    """Show the activations that meet a weight to its Fisher layer.

    The node stands after the use, so that a wrong input raises the error of the original call. It
    adds to buffers that nothing else in the graph reads, so its place changes no result. A weight
    with several uses gets several nodes and one sum.
    """
    for site in sites:
        for node, use in site.uses:
            with graph.inserting_after(node):
                training = graph.get_attr("observing")
            with graph.inserting_after(training):
                fisher = graph.get_attr(site.fisher_name)
            with graph.inserting_after(fisher):
                arguments = (fisher, site.rule.name, use.inputs, use.geometry, training)
                graph.call_function(observe, arguments)
