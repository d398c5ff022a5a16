"""What happens to every parameter: a site, which is reconstructed, or a skip with its reason.

Analysis only: nothing here changes a graph or a tensor. A parameter that several modules share is
one site.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from weakref import WeakSet

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sngd_compile.config import Config
from sngd_compile.errors import ConfigError, ModelError, PlanError
from sngd_compile.fisher.buffers import remainder_bytes
from sngd_compile.plan.activation import Surroundings
from sngd_compile.plan.budget import keep_to_budget
from sngd_compile.plan.decision import Decision, decide
from sngd_compile.plan.elsewhere import uses_elsewhere
from sngd_compile.plan.matching import Findings, find
from sngd_compile.plan.parameter_uses import Occurrence
from sngd_compile.plan.records import (
    GraphUse,
    ModulePlan,
    Place,
    Plan,
    Site,
    Skip,
    noted_together,
    qualified,
)
from sngd_compile.plan.shared_memory import held_twice
from sngd_compile.progress import tracked

Overrides = Mapping[str, Config | None]
ConfigOf = Callable[[list[str]], Config | None]
ClassOf = Callable[[nn.Module], type[nn.Module]]
Settle = Callable[[Mapping[Tensor, Decision]], Mapping[Tensor, Decision]]

planned: WeakSet[nn.Module] = WeakSet()
"""The modules for which configurations were chosen; what is added to a network later is not."""


def make_plan(model: nn.Module, config: Config, overrides: Overrides) -> Plan:
    """Decide for every parameter of `model`.

    Args:
        model: Any module, on any device, meta included.
        config: For every weight that no override names.
        overrides: Glob patterns of qualified weight names to their configuration, the last match
            counts; None leaves the weight as it is.

    Raises:
        ModelError: `model` is no module.
        ConfigError: `config` is none, or an override matches no parameter.
        PlanError: A parameter ended in neither a site nor a skip.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(config, Config):
        raise ConfigError(f"config = {config!r}: expected a Config")
    _check_overrides(model, overrides)

    def config_of(names: list[str]) -> Config | None:
        chosen: Config | None = config
        for pattern, override in overrides.items():
            if any(fnmatchcase(name, pattern) for name in names):
                chosen = override
        return chosen

    planned.update(model.modules())
    return plan_of(model, config_of, type)


def plan_of(
    model: nn.Module, config_of: ConfigOf, class_of: ClassOf, settle: Settle = keep_to_budget
) -> Plan:
    """Plan a model, or read the plan of a reconstructed network back.

    Args:
        model: The model.
        config_of: All names of a parameter to its configuration, or None to leave it.
        class_of: The class whose forward a module runs.
        settle: What the decisions for single weights become once all of them are known.
    """
    planner = _Planner(model, config_of, class_of, settle)
    owners = [
        (name, module)
        for name, module in model.named_modules()
        if any(parameter is not None for parameter in module._parameters.values())
    ]
    with tracked(owners, "capturing") as each:
        for name, module in each:
            planner.add(name, module, class_of(module))
    plan = planner.plan()
    _check_complete(model, plan)
    return plan


@dataclass(frozen=True)
class _Owner:
    """A module that owns parameters, and what it does with them."""

    name: str
    module: nn.Module
    findings: Findings


class _Planner:
    """Collect what every module does with its parameters, then decide for each parameter once."""

    def __init__(
        self, model: nn.Module, config_of: ConfigOf, class_of: ClassOf, settle: Settle
    ) -> None:
        self.owners: list[_Owner] = []
        self.occurrences: dict[Tensor, list[Occurrence]] = defaultdict(list)
        self.tied = tied_names(model)
        self.config_of, self.settle = config_of, settle
        self.model, self.class_of = model, class_of
        self.surroundings = Surroundings(model, class_of)

    def add(self, name: str, module: nn.Module, module_class: type[nn.Module]) -> None:
        """Look at one module."""
        # Not `named_parameters`: it shows a parameter that modules share in one of them only.
        owned = {n: p for n, p in module._parameters.items() if p is not None}
        wanted = [n for n, p in owned.items() if reason_to_leave(p) is None]
        findings = find(module, module_class, wanted)
        index = len(self.owners)
        self.owners.append(_Owner(name, module, findings))
        after = partial(self.surroundings.after, name)
        for attribute in wanted:
            occurrence = Occurrence(index, module._parameters, attribute, findings, after)
            self.occurrences[owned[attribute]].append(occurrence)

    def plan(self) -> Plan:
        """Decide for every parameter."""
        configs = {p: self.config_of(names) for p, names in self.tied.items()}
        elsewhere = uses_elsewhere(self.model, self.class_of, self.occurrences)
        known = {p: [*held, *elsewhere.get(p, ())] for p, held in self.occurrences.items()}
        for parameter, reason in held_twice(self.model).items():
            # What is reconstructed already stays that, whatever holds it by now.
            if parameter in known and (self.class_of is type or configs[parameter] is None):
                known[parameter].append(_refused(reason))
        decided, reasons = decide(known, configs)
        decisions = self.settle(decided)
        last = self._last(decisions)
        local: dict[int, list[tuple[Site, Place]]] = defaultdict(list)
        joined: set[Tensor] = set()
        for weight, decision in decisions.items():
            places = self._places(weight, decision)
            note = noted_together(decision.site.note, self._note(weight))
            pair = {weight} if decision.bias is None else {weight, decision.bias}
            kept = sum(map(remainder_bytes, pair))
            site = replace(decision.site, places=places, note=note, remainder_bytes=kept)
            site = replace(site, is_last=weight is last)
            joined |= pair
            for occurrence, place in zip(self.occurrences[weight], places, strict=True):
                local[occurrence.owner].append((site, place))
        plans = []
        for index, owner in enumerate(self.owners):
            skips = [
                _skip(owner.name, name, p, reason_to_leave(p) or reasons[p])
                for name, p in owner.module._parameters.items()
                if p is not None and p not in joined
            ]
            graph, names_read = owner.findings.graph, owner.findings.names_read
            parts = (tuple(local[index]), tuple(skips), names_read)
            plans.append(ModulePlan(owner.name, owner.module, graph, *parts))
        return Plan(tuple(plans))

    def _last(self, weights: Iterable[Tensor]) -> Tensor | None:
        """Return the weight that the last module holds, its last: in most models, the head's."""
        held = [(h.owner, i, w) for i, w in enumerate(weights) for h in self.occurrences[w]]
        return max(held, key=lambda entry: entry[:2])[2] if held else None

    def _places(self, weight: Tensor, decision: Decision) -> tuple[Place, ...]:
        """List where a weight and its bias are, with the calls in captured graphs."""
        places = []
        for occurrence in self.occurrences[weight]:
            owner = self.owners[occurrence.owner]
            uses: tuple[GraphUse, ...] | None = None
            if owner.findings.graph is not None:
                calls = occurrence.found if isinstance(occurrence.found, tuple) else ()
                uses = tuple(call.against(decision.site.layout) for call in calls)
            bias = _name_of(decision.bias, owner.module)
            places.append(Place(owner.name, occurrence.name, bias, uses, decision.site.spec))
        return tuple(places)

    def _note(self, weight: Tensor) -> str:
        """Say why modules that hold the weight have no graph."""
        notes = {self.owners[h.owner].findings.note for h in self.occurrences[weight]}
        return "; ".join(sorted(note for note in notes if note))


def _refused(reason: str) -> Occurrence:
    """Say why a parameter is left, beside what modules do with it."""
    return Occurrence(-1, {}, "", Findings(None, {"": reason}))


def _name_of(parameter: Tensor | None, module: nn.Module) -> str | None:
    named = module._parameters.items()
    return next((n for n, p in named if p is not None and p is parameter), None)


def _check_overrides(model: nn.Module, overrides: Overrides) -> None:
    names = [name for names in tied_names(model).values() for name in names]
    for pattern, override in overrides.items():
        if override is not None and not isinstance(override, Config):
            raise ConfigError(f"override {pattern!r}: {override!r} is neither a Config nor None")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"override {pattern!r} matches none of the parameters {names[:20]}")


def tied_names(model: nn.Module) -> dict[Tensor, list[str]]:
    """List the names of every parameter; more than one where modules share it."""
    names: dict[Tensor, list[str]] = defaultdict(list)
    for module_name, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names[parameter].append(qualified(module_name, name))
    return names


def reason_to_leave(parameter: Tensor) -> str | None:
    """Say why a parameter cannot be reconstructed whatever its module does with it."""
    # First of all: an uninitialised parameter raises when it is asked for its size.
    if is_lazy(parameter):
        return "not initialised yet: run one forward pass, then reconstruct"
    if not parameter.requires_grad:
        return "frozen (requires_grad=False)"
    if parameter.numel() == 0:
        return "it has no elements"
    if not parameter.is_floating_point():
        return f"its dtype {parameter.dtype} is not real floating point"
    return None


def _skip(module_name: str, name: str, parameter: nn.Parameter, reason: str) -> Skip:
    shape = () if is_lazy(parameter) else tuple(parameter.shape)
    return Skip(qualified(module_name, name), shape, reason)


def _check_complete(model: nn.Module, plan: Plan) -> None:
    # A parameter that is forgotten would train at the wrong rate, silently: so it is counted.
    planned = Counter(skip.name for skip in plan.skips)
    for site in plan.sites:
        planned.update(site.parameter_names)
    owned = {name for names in tied_names(model).values() for name in names}
    wrong = sorted(owned.symmetric_difference(planned)) + [n for n, k in planned.items() if k > 1]
    if wrong:
        raise PlanError(f"{wrong[0]}: planned {planned[wrong[0]]} times, expected once")
