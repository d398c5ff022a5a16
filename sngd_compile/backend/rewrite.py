"""Natural gradients in a captured frame: the forward stays, an identity turns the gradients."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import cast

from torch import fx

from sngd_compile.backend.frame import Frame, Region, Slot
from sngd_compile.backend.natural_gradient import natural, observe_frame
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.torch_private import (
    copy_parameter_sources_,
    copy_source_,
    declare_without_source_,
)

STATISTICS_INPUTS = 3
"""Sum, tally and gate come first among a slot's inputs; the buffers of the root follow."""


class FrameRewriter:
    """A copy of a frame's graph, and of those inside it, to which inputs and nodes are added.

    The copy matters: Dynamo reads its own graph again after the backend has returned.

    Args:
        frame: The frame; its graphs are not changed.
        forms: For each slot the form of the parameter's state; None leaves its gradient plain.
        counts: How many tensors each slot reads of its Fisher layer.
    """

    def __init__(
        self, frame: Frame, forms: Sequence[FisherSpec | None], counts: Sequence[int]
    ) -> None:
        """Copy the graphs and declare the inputs."""
        self.copied: dict[fx.Node, fx.Node] = {}
        self.module = self._copy(frame.module)
        self.slots = [pair for pair in zip(frame.slots, forms, strict=True) if pair[1]]
        self.silent = frame.silent
        self.regions: dict[fx.Graph, Region] = {}
        for region in frame.regions:
            inner = self._copy(region.module)
            call = self.copied[region.call]
            owner = self._owner(call.graph)
            setattr(owner, region.name, inner)
            self.regions[inner.graph] = Region(call, inner, region.name)
        self.inputs: dict[str, list[fx.Node]] = {}
        self.statistics: dict[tuple[fx.Graph, str], list[fx.Node]] = {}
        for index, (slot, _) in enumerate(self.slots):
            self.inputs[slot.name] = self._add_inputs(
                self.module.graph, f"sngd_{index}", counts[index]
            )

    def precondition_(self) -> None:
        """Let every use of a weight read `natural(w, b, root)`, which is `w` itself."""
        graph = self.module.graph
        # One node a weight, before its first use: several uses are summed by autograd before the
        # gradient is multiplied, which costs one product, not one for each use.
        first = next(node for node in graph.nodes if node.op != "placeholder")
        for slot, form in self.slots:
            assert form is not None
            root = self.inputs[slot.name][STATISTICS_INPUTS:]
            bias_reads = slot.bias_reads if form.has_bias else ()
            with graph.inserting_before(first):
                weight = self._held(slot.reads[0])
                bias = self._held(bias_reads[0]) if bias_reads else None
                arguments = (weight, bias, root, form.encoded)
                pair = graph.call_function(natural, arguments)
                halves = [graph.call_function(operator.getitem, (pair, i)) for i in (0, 1)]
            for reads, half in zip((slot.reads, bias_reads), halves, strict=True):
                for node in reads:
                    # All but the pair itself, which would become its own input.
                    _replace_uses(self.copied[node], half, pair)
            if bias is None:
                graph.erase_node(halves[1])

    def observe_(self) -> None:
        """Show the inputs of a weight to its Fisher layer, after the call."""
        for slot, form in self.slots:
            assert form is not None
            for call in slot.uses:
                # What runs under no_grad is no part of the loss, so its rows do not count.
                if call.node in self.silent:
                    continue
                node = self.copied[call.node]
                inputs = tuple(self.copied[cast(fx.Node, i)] for i in call.use.inputs)
                statistics = self._statistics(node.graph, slot)
                use = call.against(form.layout)
                arguments = (statistics, call.rule, inputs, use.use.geometry, form.encoded)
                with node.graph.inserting_after(node):
                    node.graph.call_function(observe_frame, (*arguments, use.swapped))

    def finished(self) -> fx.GraphModule:
        """Check the graphs and generate their code."""
        for module in (self.module, *(region.module for region in self.regions.values())):
            module.graph.lint()
            module.recompile()
        return self.module

    def _copy(self, module: fx.GraphModule) -> fx.GraphModule:
        """Copy a graph with all that Dynamo and AOTAutograd attached to it."""
        graph = fx.Graph()
        for node in module.graph.nodes:
            copy = graph.node_copy(node, lambda n: self.copied[n])
            self.copied[node] = copy
            copy_source_(node, copy)
        made = fx.GraphModule(module, graph)
        # AOTAutograd looks up where Dynamo found every parameter and buffer; a copy that does not
        # say so is refused as `not found in param_name_to_source`.
        made.meta = dict(module.meta)
        copy_parameter_sources_(module, made)
        return made

    def _owner(self, graph: fx.Graph) -> fx.GraphModule:
        return self.module if graph is self.module.graph else self.regions[graph].module

    def _held(self, node: fx.Node) -> fx.Node:
        """Return a node that holds a parameter before anything is computed."""
        if node.op == "placeholder":
            return self.copied[node]
        # The frame's own read may stand behind calls that will use the weight: so it is read anew.
        return self.module.graph.get_attr(str(node.target))

    def _statistics(self, graph: fx.Graph, slot: Slot) -> tuple[fx.Node, ...]:
        """Return sum, tally and gate in a graph; into a region they go as further operands."""
        if graph is self.module.graph:
            return tuple(self.inputs[slot.name][:STATISTICS_INPUTS])
        known = self.statistics.get((graph, slot.name))
        if known is None:
            region = self.regions[graph]
            index = len(self.statistics)
            known = self._add_inputs(graph, f"sngd_inner_{index}", STATISTICS_INPUTS)
            self.statistics[graph, slot.name] = known
            operands = self._statistics(region.call.graph, slot)
            region.call.args = (*region.call.args, *operands)
        return tuple(known)

    @staticmethod
    def _add_inputs(graph: fx.Graph, name: str, count: int) -> list[fx.Node]:
        """Declare further inputs, after those there are."""
        added: list[fx.Node] = []
        for number in range(count):
            # At the end, because `CompiledFrame.run` passes them after the frame's own arguments.
            last = graph.find_nodes(op="placeholder")[-1]
            with graph.inserting_after(last):
                node = graph.placeholder(f"{name}_{number}")
            declare_without_source_(node)
            added.append(node)
        return added


def _replace_uses(node: fx.Node, half: fx.Node, pair: fx.Node) -> None:
    """Let every user of `node` but `pair` read `half`."""
    node.replace_all_uses_with(half, lambda user: user is not pair)
