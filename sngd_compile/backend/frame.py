"""What a frame that Dynamo captured does with its parameters: the same rules, one flat graph.

A region under activation checkpointing is a graph inside the graph; its calls count as the
frame's own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from sngd_compile.config import Config
from sngd_compile.errors import shown
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.plan.budget import keep_to_budget
from sngd_compile.plan.decision import Decision, decide
from sngd_compile.plan.matching import Findings, Found, Matcher
from sngd_compile.plan.parameter_uses import Occurrence
from sngd_compile.plan.planner import reason_to_leave
from sngd_compile.plan.records import GraphUse
from sngd_compile.torch_private import SET_GRAD_ENABLED, source_of

Reference = int | Tensor
"""Where a frame finds a parameter when it runs: an argument's number, or the parameter."""

_HELD = re.compile(r"""_(?:modules|parameters)\[('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\]""")
"""A name, as a literal, in what Dynamo calls the source of a parameter."""


@dataclass(frozen=True)
class Slot:
    """One weight that a frame uses, with the bias that joins it.

    Args:
        name: Of the weight, as Dynamo has it.
        weight: Where the weight is when the frame runs.
        bias: Where the bias is, or None.
        spec: What its local Fisher is.
        rule: Name of the rule.
        note: Of the decision.
        reads: The nodes of the outer graph that hold the weight.
        bias_reads: Those that hold the bias.
        uses: The calls it enters, in any graph of the frame.
        is_last: Whether no other weight of the frame is used after it.
    """

    name: str
    weight: Reference
    bias: Reference | None
    spec: FisherSpec
    rule: str
    note: str
    reads: tuple[fx.Node, ...]
    bias_reads: tuple[fx.Node, ...]
    uses: tuple[GraphUse, ...]
    is_last: bool = False


@dataclass(frozen=True)
class Region:
    """A graph inside another one.

    Args:
        call: The node that runs it; its first argument reads the graph.
        graph: The graph.
        name: Attribute name under which the outer graph module holds it.
    """

    call: fx.Node
    module: fx.GraphModule
    name: str


@dataclass(frozen=True)
class Frame:
    """A captured frame and what was decided; nothing here changes the graph.

    Args:
        module: The graph module, as it came.
        slots: The weights that get natural gradients.
        left: The other parameters that require gradients, with the reason.
        regions: Graphs inside the graph, outer ones first.
        silent: Calls under `torch.no_grad`, which are not observed.
    """

    module: fx.GraphModule
    slots: tuple[Slot, ...]
    left: tuple[tuple[str, Reference, str], ...]
    regions: tuple[Region, ...]
    silent: frozenset[fx.Node]


def analyse(module: fx.GraphModule, examples: Sequence[Any], config: Config) -> Frame:
    """Match every parameter of a frame with the rules.

    Args:
        module: The graph module that a backend is given; neither it nor its graph is changed.
        examples: Its example inputs, real or fake.
        config: Of all weights.
    """
    # The same matcher and the same decision as for `reconstruct`: both APIs find one plan.
    reader = _Reader(module, examples)
    reader.walk(module)
    owned = {name: tensor for name, (tensor, _) in reader.owned.items()}
    matcher = Matcher(reader.reads, owned, reader.passed)
    wanted = [name for name, tensor in owned.items() if reason_to_leave(tensor) is None]
    found = {name: _without_parts(matcher.found(name)) for name in wanted}
    calls = {name: matcher.calls(name) for name in wanted}
    # Calls without a graph are how `Occurrence.is_compiled` knows a frame. Owner 0 for all: whether
    # a bias joins is a matter of its calls here, not of the module that holds it.
    findings = Findings(None, found, "", matcher.parameters, calls)
    occurrences = {owned[name]: [Occurrence(0, {}, name, findings)] for name in wanted}
    decided, reasons = decide(occurrences, dict.fromkeys(occurrences, config))
    # Of this frame alone: which others there will be, nobody knows yet.
    decisions = keep_to_budget(decided)
    joined = {d.bias for d in decisions.values() if d.bias is not None}
    slots, left = [], []
    for name in wanted:
        tensor = owned[name]
        if tensor in decisions:
            slots.append(_slot(name, reader, decisions[tensor], found[name]))
        elif tensor not in joined:
            left.append((reader.shown(name), reader.owned[name][1], reasons[tensor]))
    silent = frozenset(reader.silent)
    slots = _with_last(slots, module, reader.regions)
    return Frame(module, tuple(slots), tuple(left), tuple(reader.regions), silent)


def describe(frame: Frame) -> str:
    """Return a line for every parameter of a frame: its rule and factor, or why it is left."""
    lines = [
        f"{slot.name}: {slot.rule}, {slot.spec.kind} {list(slot.spec.layout.matrix)}, "
        f"{'with' if slot.spec.has_bias else 'no'} bias, {len(slot.uses)} uses"
        for slot in frame.slots
    ]
    lines += [f"{name}: left, {reason}" for name, _, reason in frame.left]
    return "\n".join(map(shown, lines))


class _Reader:
    """Find the nodes that hold parameters, in a graph and in those inside it."""

    def __init__(self, module: fx.GraphModule, examples: Sequence[Any]) -> None:
        self.owned: dict[str, tuple[Tensor, Reference]] = {}
        self.reads: dict[fx.Node, str] = {}
        self.passed: set[fx.Node] = set()
        self.silent: set[fx.Node] = set()
        self.regions: list[Region] = []
        self.outer = module.graph
        places = module.graph.find_nodes(op="placeholder")
        # Dynamo lifts parameters to arguments. An example may be fake, and is a Parameter then too.
        for index, (node, example) in enumerate(zip(places, examples, strict=True)):
            if isinstance(example, nn.Parameter):
                self.owned[str(node.target)] = (example, index)
                self.reads[node] = str(node.target)
        for node in module.graph.find_nodes(op="get_attr"):
            value = _attribute(module, str(node.target))
            if isinstance(value, nn.Parameter):
                self.owned[str(node.target)] = (value, value)
                self.reads[node] = str(node.target)

    def walk(self, module: fx.GraphModule, observed: bool = True) -> None:
        """Follow parameters into the regions under checkpoints; mark what runs without gradient."""
        for node in module.graph.nodes:
            if getattr(node.target, "__name__", "") == SET_GRAD_ENABLED:
                observed = bool(node.args[0])
            if not observed:
                self.silent.add(node)
            if node.target is torch.ops.higher_order.tag_activation_checkpoint:
                self._enter(module, node, observed)

    def _enter(self, module: fx.GraphModule, call: fx.Node, observed: bool) -> None:
        name = str(cast(fx.Node, call.args[0]).target)
        inner = cast(fx.GraphModule, _attribute(module, name))
        self.regions.append(Region(call, inner, name))
        self.passed.add(call)
        places = inner.graph.find_nodes(op="placeholder")
        # Inside a region a weight is a placeholder like any other: one not followed into it would
        # look unused, and keep its plain gradient.
        for place, operand in zip(places, call.args[1:], strict=True):
            if operand in self.reads:
                self.reads[place] = self.reads[cast(fx.Node, operand)]
        self.walk(inner, observed)

    def at(self, tensor: Tensor) -> tuple[Reference, tuple[fx.Node, ...]]:
        """Return where a parameter is, and the nodes of the outer graph that hold it."""
        name, where = next((n, w) for n, (t, w) in self.owned.items() if t is tensor)
        nodes = (node for node, read in self.reads.items() if read == name)
        return where, tuple(node for node in nodes if node.graph is self.outer)

    def shown(self, name: str) -> str:
        """Return the name that the user gave a parameter, as far as Dynamo tells."""
        node = next(node for node, read in self.reads.items() if read == name)
        parts = _HELD.findall(source_of(node) or "")
        return ".".join(ast.literal_eval(part) for part in parts) or name


def _slot(name: str, reader: _Reader, decision: Decision, found: Found) -> Slot:
    weight, reads = reader.at(reader.owned[name][0])
    bias: Reference | None = None
    bias_reads: tuple[fx.Node, ...] = ()
    if decision.bias is not None:
        bias, bias_reads = reader.at(decision.bias)
    site, uses = decision.site, cast(tuple[GraphUse, ...], found)
    shown = reader.shown(name)
    return Slot(shown, weight, bias, site.spec, site.rule, site.note, reads, bias_reads, uses)


def _with_last(
    slots: Sequence[Slot], module: fx.GraphModule, regions: Sequence[Region]
) -> list[Slot]:
    """Mark the weight that is used last."""
    places: dict[fx.Node, tuple[int, ...]] = {n: (i,) for i, n in enumerate(module.graph.nodes)}
    for region in regions:
        inside = places[region.call]
        places |= {node: (*inside, i) for i, node in enumerate(region.module.graph.nodes)}
    used = {slot.name: max((places[call.node] for call in slot.uses), default=()) for slot in slots}
    last = max(used.values(), default=())
    return [replace(slot, is_last=used[slot.name] == last) for slot in slots]


def _without_parts(found: Found) -> Found:
    """Refuse a weight that is split: in a frame its parts are not tracked."""
    return (
        found
        if isinstance(found, tuple | str)
        else "the forward splits it, which a compiled frame does not track: use reconstruct"
    )


def _attribute(module: nn.Module, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part, None)
    return value
