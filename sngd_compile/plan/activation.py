"""Which activation follows a call: read from captured graphs, of its module or of those around."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from sngd_compile.capture.bytecode import UncapturableError
from sngd_compile.capture.module_graph import capture
from sngd_compile.fisher.kinds.base import NextActivation
from sngd_compile.plan.records import qualified

MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.ELU: "elu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
}
FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), "relu"),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"), "tanh"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"), "sigmoid"),
    **dict.fromkeys((F.elu, F.elu_), "elu"),
    F.gelu: "gelu",
    F.silu: "silu",
}
"""Functions, and methods of tensors by name; both forms of GELU count as one."""


class Surroundings:
    """The modules of a model, whose forwards are captured on demand.

    Args:
        model: The model.
        class_of: The class whose forward a module runs.
    """

    def __init__(self, model: nn.Module, class_of: Callable[[nn.Module], type[nn.Module]]) -> None:
        self.model, self.class_of = model, class_of
        self.graphs: dict[nn.Module, fx.Graph | None] = {}

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Every module by each of its names."""
        return dict(self.model.named_modules(remove_duplicate=False))

    def after(self, module_name: str, node: fx.Node) -> NextActivation:
        """Say which activation reads the result of a call, and nothing beside it.

        Args:
            module_name: Qualified name of the module whose graph has the call.
            node: The call.
        """
        return common([self._of_reader(module_name, user) for user in node.users])

    def _of_reader(self, module_name: str, user: fx.Node) -> NextActivation:
        if user.op == "output":
            return self._after_module(module_name)
        if user.op == "call_module":
            name = qualified(module_name, str(user.target))
            return _of_child(name, self.modules[name])
        target = getattr(user.target, "operation", user.target)  # of an augmented assignment
        activation = FUNCTIONS.get(target, "")
        shown = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        where = f"in {module_name}" if module_name else "in the model's forward"
        # The per-unit Fisher information of an ELU is known for alpha 1 alone (docs/method.md).
        if activation == "elu" and _alpha(user) != 1:
            return NextActivation("", f"{shown} {where} has an alpha other than 1")
        return NextActivation(activation, f"{shown} follows it {where}")

    def _after_module(self, module_name: str) -> NextActivation:
        """Look at every place in which a module around this one calls it."""
        module = self.modules[module_name]
        # A module that stands in several places needs the same activation after each.
        names = [name for name, other in self.modules.items() if other is module]
        return common([self._after_name(name) for name in names])

    def _after_name(self, name: str) -> NextActivation:
        """Look at the nearest module around that calls a module by this name."""
        if not name:
            return NextActivation("", "the model returns its result")
        # The caller need not be the parent: containers without a forward lie in between.
        parts = name.split(".")
        for cut in reversed(range(len(parts))):
            around, own = ".".join(parts[:cut]), ".".join(parts[cut:])
            if around not in self.modules:
                continue  # the cut fell on a dot inside a name
            graph = self._graph(self.modules[around])
            calls = [] if graph is None else graph.find_nodes(op="call_module", target=own)
            if calls:
                return common([self.after(around, call) for call in calls])
        return common([])

    def _graph(self, module: nn.Module) -> fx.Graph | None:
        if module not in self.graphs:
            try:
                self.graphs[module] = capture(module, self.class_of(module)).graph
            except UncapturableError:
                self.graphs[module] = None
        return self.graphs[module]


def _of_child(name: str, child: nn.Module) -> NextActivation:
    kind = next((kind for kind in MODULES if isinstance(child, kind)), None)
    # A subclass with a forward of its own may compute another function.
    runs_it = kind is not None and type(child).forward is kind.forward
    activation = MODULES[kind] if kind is not None and runs_it else ""
    shown = f"{name} ({type(child).__name__})"
    if isinstance(child, nn.ELU) and child.alpha != 1:
        return NextActivation("", f"{shown} has an alpha other than 1")
    return NextActivation(activation, f"{shown} follows it")


def _alpha(node: fx.Node) -> Any:
    return node.kwargs.get("alpha", node.args[1] if len(node.args) > 1 else 1)


def common(found: Iterable[NextActivation]) -> NextActivation:
    """Return what all readers agree on."""
    found = list(found)
    if not found:
        return NextActivation("", "no captured forward shows where its result goes")
    unknown = next((one for one in found if not one.activation), None)
    if unknown is not None:
        return unknown
    if len({one.activation for one in found}) > 1:
        return NextActivation("", "; ".join(sorted({one.reason for one in found})))
    return found[0]
