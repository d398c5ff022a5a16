"""The records of a plan: what is reconstructed, what is not, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import fx, nn

from sngd_compile.config import Config
from sngd_compile.fisher.kinds.base import FisherKind, kind_of
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.layout import Layout
from sngd_compile.rules import Use


@dataclass(frozen=True)
class Skip:
    """A parameter that stays as it is, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class GraphUse:
    """A call in a captured graph that a weight enters.

    Args:
        node: The call.
        use: What the rule said of it.
        rule: Name of the rule.
        swapped: 0; or the width of the rows, where the call takes the weight's inputs for its
            outputs and the other way round, as an embedding tied to a head does.
    """

    node: fx.Node
    use: Use
    rule: str
    swapped: int = 0

    def against(self, layout: Layout) -> GraphUse:
        """Return the use, measured against the layout that was chosen for the weight."""
        return replace(self, swapped=self.use.layout.swapped_width(layout) or 0)


@dataclass(frozen=True)
class Place:
    """Where a module holds a reconstructed weight.

    Args:
        module_name: Qualified name of the module; "" for the model itself.
        weight_name: Attribute name of the weight.
        bias_name: Attribute name of the bias that joins the local Fisher, or None.
        uses: The calls in the module's captured graph that the weight enters; None where the
            module runs as it is and its calls are observed at run time.
        spec: What the local Fisher of the weight is; None before that is decided.
    """

    module_name: str
    weight_name: str
    bias_name: str | None
    uses: tuple[GraphUse, ...] | None = field(repr=False)
    spec: FisherSpec | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Qualified name of the weight."""
        return qualified(self.module_name, self.weight_name)

    @property
    def definition(self) -> FisherKind:
        """What the kind of its local Fisher means."""
        assert self.spec is not None  # decided before any graph is rewritten
        return kind_of(self.spec)

    @property
    def parameter_names(self) -> list[str]:
        """Qualified names of the weight and of the bias that joined."""
        names = [self.weight_name] if self.bias_name is None else [self.weight_name, self.bias_name]
        return [qualified(self.module_name, name) for name in names]

    @property
    def fisher_name(self) -> str:
        """Attribute name of the Fisher layer."""
        return f"{self.weight_name}_fisher"


@dataclass(frozen=True)
class Site:
    """A weight (and its bias) that is reconstructed: one local Fisher, however often it is used.

    Args:
        places: Every module and name that holds the weight; the first names it.
        shape: Shape of the weight.
        spec: What its local Fisher is.
        rule: Name of the rule that matched.
        config: Of this weight.
        note: Why the kind is not the configured one, or "".
        root_columns: Of a sketch in a network, columns that its root has now; 0 of others.
        remainder_bytes: Memory of what is kept beside parameters of half precision.
        is_last: Whether no other layer of the model is after it, as far as modules say.
    """

    places: tuple[Place, ...]
    shape: tuple[int, ...]
    spec: FisherSpec
    rule: str
    config: Config
    note: str = ""
    root_columns: int = 0
    remainder_bytes: int = 0
    is_last: bool = False

    @property
    def kind(self) -> str:
        """Local Fisher, see `Config.fisher`."""
        return self.spec.kind

    @property
    def layout(self) -> Layout:
        """How the weight is laid out as matrices."""
        return self.spec.layout

    @property
    def name(self) -> str:
        """Qualified name of the weight."""
        return self.places[0].name

    @property
    def activation(self) -> str:
        """Of a unit kind, the name of what follows the layer; "" of others."""
        return self.spec.activation

    @property
    def weight_name(self) -> str:
        """Attribute name of the weight where it is first."""
        return self.places[0].weight_name

    @property
    def bias_name(self) -> str | None:
        """Attribute name of the bias where the weight is first."""
        return self.places[0].bias_name

    @property
    def parameter_names(self) -> list[str]:
        """Qualified names of the weight and of the bias that joined, in every place."""
        return [name for place in self.places for name in place.parameter_names]

    @property
    def size(self) -> int:
        """D, weights of one output, bias included."""
        return self.spec.size

    @property
    def parameter_count(self) -> int:
        """Elements of the weight and of the bias."""
        return self.layout.all_outputs * self.size

    def fisher_layer(self, device: torch.device) -> FisherLayer:
        """Make the Fisher layer on `device`."""
        layer = FisherLayer(self.name, self.spec, self.config, device)
        layer.is_last = self.is_last
        return layer

    @property
    def state_bytes(self) -> int:
        """Memory of the Fisher layer's buffers."""
        return state_bytes(self.spec) + self.remainder_bytes

    @property
    def step_work(self) -> int:
        """Multiply-adds that the root adds to a step, at the most."""
        rank = self.root_columns or self.spec.rank
        return kind_of(self.spec).step_work(replace(self.spec, rank=rank))

    @property
    def refresh_work(self) -> int:
        """Multiply-adds of a refresh, about."""
        return kind_of(self.spec).refresh_work(self.spec)


@dataclass(frozen=True)
class ModulePlan:
    """The plan of one module that owns parameters.

    Args:
        module_name: Its qualified name.
        module: The module.
        graph: Its captured forward; None where its own forward runs as it is.
        sites: The reconstructed weights, each with its place in this module.
        skips: The parameters that stay as they are.
        names_read: The attributes of the module on which the graph, or that there is none, depends.
    """

    module_name: str
    module: nn.Module
    graph: fx.Graph | None
    sites: tuple[tuple[Site, Place], ...]
    skips: tuple[Skip, ...]
    names_read: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Plan:
    """The plan of a model: one entry per module that owns parameters."""

    modules: tuple[ModulePlan, ...]

    @property
    def sites(self) -> list[Site]:
        """All that is reconstructed, each weight once."""
        found = (site for module in self.modules for site, _ in module.sites)
        return list({id(site): site for site in found}.values())

    @property
    def skips(self) -> list[Skip]:
        """All that stays as it is."""
        return [skip for module in self.modules for skip in module.skips]

    def noted(self, notes: Mapping[str, str]) -> Plan:
        """Return the plan with notes added to the sites of these names."""

        def with_note(site: Site) -> Site:
            return replace(site, note=noted_together(site.note, notes.get(site.name, "")))

        sites = {id(site): with_note(site) for site in self.sites}
        modules = [
            replace(module, sites=tuple((sites[id(site)], place) for site, place in module.sites))
            for module in self.modules
        ]
        return Plan(tuple(modules))


@lru_cache(maxsize=4096)  # a network has few shapes, and a budget asks for each many times
def state_bytes(spec: FisherSpec) -> int:
    """Return the memory of a Fisher layer's buffers."""
    # From the layer itself, so that the plan cannot disagree with it, and without its memory.
    layer = FisherLayer("", spec, Config(), torch.device("meta"))
    return sum(buffer.nbytes for buffer in layer.buffers())


def fisher_text(spec: FisherSpec) -> str:
    """Return kind, number and size of the factors of a local Fisher."""
    return f"{spec.kind} {kind_of(spec).factor_text(spec)}"


def bytes_text(number: int) -> str:
    """Return a number of bytes in KiB, MiB or GiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number / 2**10:.1f} KiB"


def noted_together(*texts: str) -> str:
    """Join what is noted of one weight; empty texts say nothing."""
    return "; ".join(text for text in texts if text)


def qualified(module_name: str, name: str) -> str:
    """Join the name of a module ("" for the model itself) and of its attribute."""
    return f"{module_name}.{name}" if module_name else name
