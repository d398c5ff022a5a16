"""From one module to what its forward does with each of its own parameters, by the rules."""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import ParametrizationList

from sngd_compile.capture.bytecode import (
    UncapturableError,
    changes_in_place,
    is_python,
    reads_parameters_raw,
)
from sngd_compile.capture.module_graph import capture
from sngd_compile.plan.reasons import ADDED, AT_RUN_TIME, LONE_BIAS, PLAIN, UNMET, UNUSED
from sngd_compile.plan.records import GraphUse
from sngd_compile.plan.rehearsal import Rehearsal
from sngd_compile.rules import Planned, Use, planned_weights, rule_for, runs_known_forward
from sngd_compile.torch_private import forward_pre_hooks, tree_leaves

RESERVED_NAMES = (
    "names",
    "program",
    "observing",
    "local_sites",
    "original_class",
    "run_own",
)
"""Attributes that a module gets when it is reconstructed."""

Found = tuple[GraphUse, ...] | Planned | str
"""The calls that a parameter enters; or what is known of it before any call; or why it is left."""

_TRANSPOSES = ("t", "T", "mT")
_PARTS = ("chunk", "split", "unbind", "getitem", "select", "narrow", "to", "type_as", "float")
_ADDITIONS = {operator.add, operator.iadd, torch.add, torch.Tensor.add, torch.Tensor.add_}


@dataclass(frozen=True)
class Findings:
    """What one module does with its own parameters.

    Args:
        graph: The captured forward; None where the module's own forward runs as it is.
        found: By attribute name.
        note: Why there is no graph, or "".
        tensors: The nodes that hold a parameter, or a view of one.
        calls: By attribute name, every node that reads the parameter.
        names_read: The attributes of the module on which the graph, or that there is none, depends.
    """

    graph: fx.Graph | None
    found: Mapping[str, Found]
    note: str = ""
    tensors: Mapping[fx.Node, Tensor] = field(default_factory=dict)
    calls: Mapping[str, frozenset[fx.Node]] = field(default_factory=dict)
    names_read: frozenset[str] = frozenset()


def find(module: nn.Module, module_class: type[nn.Module], names: Iterable[str]) -> Findings:
    """Capture a module and match the calls that its parameters enter.

    Args:
        module: The module.
        module_class: Its class, of a reconstructed module the original one.
        names: Attribute names of the parameters that are wanted.
    """
    names = list(names)
    obstacle = _obstacle(module, module_class, names)
    if not names or obstacle:
        return Findings(None, dict.fromkeys(names, obstacle or ""))
    try:
        captured = capture(module, module_class)
    except UncapturableError as error:
        reason = f"its module cannot be captured: {error}"
        # What a layer of torch does is known: why no graph repeats it does not concern a user.
        note = "" if runs_known_forward(module_class) else f"{reason}; {AT_RUN_TIME}"
        findings = _as_it_is(module, module_class, names, note, f"{reason}; {PLAIN}")
        return replace(findings, names_read=error.names_read)
    graph = captured.graph
    owned = {n: p for n, p in module._parameters.items() if p is not None}
    reads = {node: node.target for node in graph.nodes if node.op == "get_attr"}
    own_reads = {node: name for node, name in reads.items() if name in owned}
    matcher = Matcher(own_reads, owned)
    found = {name: matcher.found(name) for name in names}
    # The parts of a weight are followed at run time alone, so its module runs as written.
    apart = next((name for name in names if matcher.is_taken_apart(name)), None)
    if apart is not None:
        note = f"its forward splits {apart}; {AT_RUN_TIME}"
        as_it_is = _as_it_is(module, module_class, names, note, PLAIN)
        if not isinstance(as_it_is.found[apart], str):
            return as_it_is
    for name in names:
        # A hook such as weight_norm's computes the weight, which the forward reads as a plain
        # tensor: the parameter behind it looks unused.
        if found[name] == UNUSED and (hook := _computing_hook(module)):
            found[name] = _computed_by(hook)
    calls = {name: matcher.calls(name) for name in names}
    return Findings(graph, found, "", matcher.parameters, calls, captured.names_read)


def _as_it_is(
    module: nn.Module, module_class: type[nn.Module], names: Sequence[str], note: str, reason: str
) -> Findings:
    """Describe the weights of a module whose forward runs as it is."""
    if runs_known_forward(module_class):
        structure = planned_weights(module, module_class)
        return Findings(None, {name: structure.get(name, reason) for name in names}, note)
    if module_class.forward is nn.Module.forward:
        return Findings(None, dict.fromkeys(names, UNUSED), note)
    if not is_python(module_class.forward):
        return Findings(None, dict.fromkeys(names, reason), note)
    if reads_parameters_raw(module_class, module_class.forward):
        raw = f"its forward takes it out of _parameters, where w' would stand for w; {reason}"
        return Findings(None, dict.fromkeys(names, raw))
    owned = {p: name for name in names if (p := module._parameters[name]) is not None}
    rehearsal = Rehearsal(module, module_class, owned)
    # What ended a path may have hidden a use.
    unmet = f"{UNMET}; {reason}" if rehearsal.problem else f"{UNUSED}; {reason}"
    known = planned_weights(module, module_class)
    found: dict[str, Found] = {}
    for name in names:
        watched = owned[cast(nn.Parameter, module._parameters[name])]
        found[name] = rehearsal.found(watched, known.get(name, "")) or unmet
        if changes_in_place(module_class, module_class.forward, name):
            found[name] = f"its forward changes it in place; {reason}"
    return Findings(None, found, note)


class Matcher:
    """Match parameters with the rules, in the graph of one module or of many.

    Args:
        reads: The nodes that hold a parameter, with its name.
        owned: The parameters by that name.
        passed: Calls that hand parameters on to a graph of their own, whose nodes are in `reads`.
    """

    def __init__(
        self,
        reads: Mapping[fx.Node, str],
        owned: Mapping[str, Tensor],
        passed: Collection[fx.Node] = (),
    ) -> None:
        self.owned, self.passed = owned, passed
        self.nodes: dict[str, list[fx.Node]] = defaultdict(list)
        self.parameters: dict[fx.Node, Tensor] = {}
        self.transposed: set[fx.Node] = set()
        for node, name in reads.items():
            self._add(name, node, owned[name])

    def _add(self, name: str, node: fx.Node, view: Tensor) -> None:
        """Remember a node that holds a parameter, and those that hold its transpose."""
        self.nodes[name].append(node)
        self.parameters[node] = view
        for user in list(node.users):
            if user not in self.parameters and _is_transpose(user, view.dim()):
                # The transpose of a transpose is the weight as it was.
                if node not in self.transposed:
                    self.transposed.add(user)
                self._add(name, user, view.detach().mT)

    def calls(self, name: str) -> frozenset[fx.Node]:
        """List the nodes that read a parameter."""
        return frozenset(self._calls(name))

    def _calls(self, name: str) -> dict[fx.Node, None]:
        users = (user for node in self.nodes[name] for user in node.users)
        return {u: None for u in users if u not in self.parameters and u not in self.passed}

    def found(self, name: str) -> Found:
        """Match every call that a parameter enters, or say which one no rule takes."""
        calls = self._calls(name)
        if not calls:
            return UNUSED
        uses = []
        for node in calls:
            use = self._match(name, node)
            # One use that has no rule is enough: the rows of the others are not all of its rows.
            if isinstance(use, str):
                return use
            uses.append(use)
        return tuple(uses)

    def is_taken_apart(self, name: str) -> bool:
        """Say whether a weight is cut into parts, each of which may enter a call."""
        return self.owned[name].dim() >= 2 and any(map(_takes_apart, self._calls(name)))

    def _match(self, name: str, node: fx.Node) -> GraphUse | str:
        target = node.target if node.op in ("call_function", "call_method") else None
        target = getattr(target, "operation", target)  # of an augmented assignment
        if target in _ADDITIONS or target in ("add", "add_"):
            return ADDED
        rule = rule_for(target) if target is not None else None
        if rule is None:
            return self._without_rule(node)
        try:
            use = rule.match(rule.bind(node.args, node.kwargs, self.parameters))
        except TypeError:
            use = f"no rule for these arguments of {_where(node)}; {PLAIN}"
        if isinstance(use, str):
            return use
        return self._checked(name, node, use, rule.name)

    def _without_rule(self, node: fx.Node) -> str:
        """Say what a call that no rule knows makes of a parameter."""
        if node.op == "output":
            return f"its module's forward returns it; {PLAIN}"
        if all(source in self.parameters for source in node.all_input_nodes):
            return (
                f"another weight is computed from it by {_where(node)}: no rule for a function of "
                f"a parameter alone; {PLAIN}"
            )
        return f"no rule for {_where(node)}; {PLAIN}"

    def _checked(self, name: str, node: fx.Node, use: Use, rule: str) -> GraphUse | str:
        """Accept a use in which the parameter is the weight and nothing else."""
        # A rule that matched may have found this parameter in the place of the bias.
        if use.weight not in self.nodes[name]:
            return LONE_BIAS
        if not set(self.nodes[name]).isdisjoint(use.inputs):
            return f"it is the weight and also the input of {_where(node)}; {PLAIN}"
        if use.weight in self.transposed:
            use = replace(use, layout=use.layout.of_transpose())
        return GraphUse(node, use, rule)


def bias_target(use: Use) -> str | None:
    """Name the attribute that a graph's call adds as a bias."""
    return str(use.bias.target) if isinstance(use.bias, fx.Node) else None


def _is_transpose(node: fx.Node, dims: int) -> bool:
    """Say whether a node swaps the last two axes of a view of a parameter, and no others."""
    if dims < 2:
        return False
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] == "mT" or (dims == 2 and node.args[1] in _TRANSPOSES)
    if node.target in ("t", "T") or node.target is torch.t:
        return dims == 2
    axes = [axis % dims for axis in tree_leaves(node.args[1:]) if isinstance(axis, int)]
    if node.target in ("permute", torch.permute):
        return axes == [*range(dims - 2), dims - 1, dims - 2]
    swaps = node.target in ("transpose", "swapaxes", torch.transpose)
    return swaps and sorted(axes) == [dims - 2, dims - 1]


def _takes_apart(node: fx.Node) -> bool:
    target = node.target if isinstance(node.target, str) else node.target.__name__
    return node.op in ("call_function", "call_method") and target in _PARTS


def _obstacle(module: nn.Module, module_class: type[nn.Module], names: Iterable[str]) -> str | None:
    """Say why a module cannot become a reconstructed one."""
    if isinstance(module, torch.jit.ScriptModule):
        return f"its module is scripted: reconstruct it before torch.jit does; {PLAIN}"
    if isinstance(module, ParametrizationList):
        return _computed_by(", ".join(_plain_name(child) for child in module))
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return (
            f"its module is a {type(module).__name__}, whose length a Fisher layer would change: "
            f"hold the parameter in a module of its own; {PLAIN}"
        )
    own_copying = (
        hasattr(module_class, "__deepcopy__")
        or hasattr(module_class, "__copy__")
        or module_class.__reduce_ex__ is not object.__reduce_ex__
        or module_class.__reduce__ is not object.__reduce__
    )
    if own_copying:
        return (
            f"{module_class.__name__} defines how it is copied or pickled, which may lose a Fisher "
            f"layer; {PLAIN}"
        )
    return _unusable_name(module, module_class, names)


def _unusable_name(
    module: nn.Module, module_class: type[nn.Module], names: Iterable[str]
) -> str | None:
    """Say which attribute of a module could not be one of a reconstructed module."""
    for name in names:
        # They become attributes of a class, and Python gives such names a meaning there.
        if "." in name or (name.startswith("__") and name.endswith("__")):
            return f"{name!r} is no name for a parameter of a reconstructed module: rename it"
    needed = [f"{name}_{end}" for name in names for end in ("fisher", "prime")]
    taken = [name for name in (*RESERVED_NAMES, *needed) if hasattr(module, name)]
    # One that is reconstructed already has these attributes, and its class is another.
    if taken and type(module) is module_class:
        return (
            f"its module has an attribute {taken[0]!r}, which a reconstructed one needs: rename it"
        )
    return None


def _computing_hook(module: nn.Module) -> str:
    """Name a hook that computes a weight before each forward, as weight_norm does; or ""."""
    hooks = forward_pre_hooks(module)
    found = (hook for hook in hooks if type(hook).__module__.startswith("torch.nn.utils."))
    return next((_plain_name(hook) for hook in found), "")


def _computed_by(computing: str) -> str:
    return (
        f"{computing} computes the weight of its layer from it: only a weight that a layer uses as "
        f"it is has a local Fisher; {PLAIN}"
    )


def _plain_name(thing: object) -> str:
    """Return the name of a class; of one of torch's own as people call it, `weight_norm`."""
    name = type(thing).__name__
    if not type(thing).__module__.startswith("torch."):
        return name
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip("_")).lower()


def _where(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else node.target.__name__
    line = node.meta.get("line") or _innermost_line(node.stack_trace or "")
    return f"{target} ({line})" if line else target


def _innermost_line(stack_trace: str) -> str:
    """Name file and line of a call in Dynamo's graph, which keeps them as text."""
    places = re.findall(r'File "(?:.*[/\\])?([^"]+)", line (\d+)', stack_trace)
    return ":".join(places[-1]) if places else ""
