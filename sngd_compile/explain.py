"""Looking at plans, graphs and Fisher layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, fx, nn

from sngd_compile.backend.compiled_models import COMPILED, parameters_of, plan_of_compiled
from sngd_compile.backend.parameter_state import state_of
from sngd_compile.config import Config
from sngd_compile.errors import ModelError
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.inspection.explanation import Explanation
from sngd_compile.inspection.graphs import Graphs
from sngd_compile.inspection.pass_records import PassRecords, run_recorded_
from sngd_compile.modules.reconstructed import Reconstructed, reconstructed_modules
from sngd_compile.plan.budget import keep_to_budget
from sngd_compile.plan.decision import Decision
from sngd_compile.plan.planner import Overrides, Settle, make_plan, plan_of, planned
from sngd_compile.plan.reasons import ADDED_LATER, LEFT_OUT
from sngd_compile.plan.records import ModulePlan, Plan, qualified
from sngd_compile.training.diagnosis import notes_of
from sngd_compile.training.site import Site

APART = "its bias is trained in another way, or not at all: it takes plain steps of its own"


def explain(
    model: nn.Module, config: Config | None = None, *, overrides: Overrides | None = None
) -> Explanation:
    """Say what happens to every parameter: its rule and cost, or why it is left.

    Args:
        model: A plain model (meta device included: nothing is computed), of which the plan is
            made; or a reconstructed network, whose present state is read; or a model compiled with
            `backend="sngd"`, of which the frames that have run are reported. After training, notes
            name what looks wrong about a Fisher layer, and the setting to change.
        config: As for `reconstruct`; a reconstructed network brings its own.
        overrides: As for `reconstruct`.

    Returns:
        What `print` shows as tables, in which weights that are equal in everything but an index
        in their names are one line. Work is counted in multiply-adds: the most that a step gets
        from the root, and a refresh.

    Raises:
        ModelError: `model` is no module.
        ConfigError: `config` is none, or an override matches no parameter.
    """

    def plan() -> Plan:
        return _plan_of_any(model, config, overrides)

    return Explanation(plan(), fisher_layers(model), plan)


def passes(
    model: nn.Module, config: Config | None = None, *, overrides: Overrides | None = None
) -> PassRecords:
    """Run the passes on the graphs of a model, or on those that a network was made of; record each.

    Args:
        model: As for `explain`; it is not changed.
        config: As for `explain`.
        overrides: As for `explain`.

    Returns:
        A list of records, module by module in the order of the passes, that prints a line for each
        pass; a record has the text before and after, the numbers of nodes and the seconds.

    Raises:
        ModelError: `model` is no module.
        ConfigError: `config` is none, or an override matches no parameter.
    """
    return run_recorded_(_plan_of_any(model, config, overrides))


def _plan_of_any(model: nn.Module, config: Config | None, overrides: Overrides | None) -> Plan:
    if isinstance(model, nn.Module) and COMPILED.includes(model):
        return plan_of_compiled(model)
    if reconstructed_modules(model):
        return _plan_of_network(model)
    return make_plan(model, Config() if config is None else config, overrides or {})


def graph(net: nn.Module, name: str | None = None) -> Graphs:
    """Return the FX graphs that run in a reconstructed network, by module name.

    Nodes that a pass created carry its name in `node.meta["pass"]`, and the rule and line of the
    calls that they are there for in `node.meta["for"]`.

    Args:
        net: The network.
        name: Qualified name of one module, whose graph alone is wanted; "" for the network itself.

    Raises:
        ModelError: There is no reconstructed module of that name with a graph, or `net` is compiled
            with `backend="sngd"`.
    """
    if isinstance(net, nn.Module) and COMPILED.includes(net):
        raise ModelError(
            'a model compiled with backend="sngd" has graphs of Dynamo, one a frame: see what '
            "became of its weights by sngd.explain, or take sngd.graph of sngd.reconstruct(model)"
        )
    programs = {key: m.program for key, m in reconstructed_modules(net).items() if m.program.graph}
    if name is not None:
        if name not in programs:
            known = ", ".join(map(repr, [*programs][:20])) or "none"
            raise ModelError(
                f"{name!r} is no reconstructed module with a graph of its own; those with one: "
                f"{known}. A module whose forward cannot be captured runs it as it is"
            )
        programs = {name: programs[name]}

    def capture() -> dict[str, fx.Graph]:
        plan = _plan_of_network(net)
        return {module.module_name: module.graph for module in plan.modules if module.graph}

    graphs = {key: program.graph for key, program in programs.items() if program.graph}
    return Graphs(graphs, {key: program.source for key, program in programs.items()}, capture)


def fisher_layers(net: nn.Module) -> dict[str, FisherLayer]:
    """Map the qualified name of each reconstructed weight to its Fisher layer.

    Of a model compiled with `backend="sngd"`: of each weight that a frame has used.
    """
    return {name: site.fisher for name, site in sites_by_name(net).items()}


def sites_by_name(net: nn.Module) -> dict[str, Site]:
    """Map the qualified name of each reconstructed weight to where it and its Fisher layer are."""
    modules = reconstructed_modules(net)
    states = [(names, state_of(parameter)) for parameter, names in parameters_of(net).items()]
    found: dict[str, Site] = {
        name: site
        for names, state in states
        if state
        for site in state.local_sites()
        for name in names
    }
    return found | {
        qualified(name, site.weight_name): site
        for name, module in modules.items()
        for site in module.local_sites()
    }


def distinct_sites(net: nn.Module) -> dict[str, Site]:
    """Map the first name of each reconstructed weight to its site, each Fisher layer once."""
    first: dict[FisherLayer, tuple[str, Site]] = {}
    for name, site in sites_by_name(net).items():
        first.setdefault(site.fisher, (name, site))
    return dict(first.values())


def _plan_of_network(net: nn.Module) -> Plan:
    """Read the plan back from a network: what has a Fisher layer is a site."""
    chosen = {
        qualified(name, own): site.fisher.config
        for name, module in reconstructed_modules(net).items()
        for site in module.local_sites()
        for own in (site.weight_name, site.bias_name)
        if own
    }

    def config_of(names: list[str]) -> Config | None:
        return next((chosen[name] for name in names if name in chosen), None)

    def class_of(module: nn.Module) -> type[nn.Module]:
        return module.original_class if isinstance(module, Reconstructed) else type(module)

    notes = {
        qualified(name, site.weight_name): notes_of(site)
        for name, module in reconstructed_modules(net).items()
        for site in module.local_sites()
    }
    plan = plan_of(net, config_of, class_of, _as_they_are(net)).noted(notes)
    return Plan(tuple(m if m.module in planned else _added(m) for m in plan.modules))


def _added(plan: ModulePlan) -> ModulePlan:
    """Return the plan of a module that may have been added after `reconstruct`, as adapters are."""
    skips = (replace(s, reason=ADDED_LATER) if s.reason == LEFT_OUT else s for s in plan.skips)
    return replace(plan, skips=tuple(skips))


def _as_they_are(net: nn.Module) -> Settle:
    """Return what gives each weight of a network the local Fisher that it has."""
    layers: dict[Tensor, FisherLayer] = {
        weight: site.fisher
        for module in reconstructed_modules(net).values()
        for site in module.local_sites()
        if (weight := module._parameters[site.weight_name]) is not None
    }

    def settle(decisions: Mapping[Tensor, Decision]) -> Mapping[Tensor, Decision]:
        # The budget says what was lowered and why. But a network that was put together from others
        # has what each of them got, and nothing is lowered in it now.
        budgeted = keep_to_budget(decisions)
        return {
            weight: _found(layers[weight], decision, budgeted[weight])
            if weight in layers
            else decision
            for weight, decision in decisions.items()
        }

    return settle


def _found(fisher: FisherLayer, decided: Decision, budgeted: Decision) -> Decision:
    """Return the decision that a Fisher layer is of, with what only its root can say."""
    decision = _as_it_is(fisher, decided, budgeted)
    columns = fisher.root_buffers.columns
    return replace(decision, site=replace(decision.site, root_columns=columns))


def _as_it_is(fisher: FisherLayer, decided: Decision, budgeted: Decision) -> Decision:
    """Return which of two decisions a Fisher layer is of; where of neither, what it is."""
    own = fisher.spec
    if own.is_bias_apart:
        return replace(decided, site=replace(decided.site, spec=own, note=APART))
    for decision in (decided, budgeted):
        spec = decision.site.spec
        if (spec.kind, spec.rank) == (own.kind, own.rank):
            return decision
    # Only what the budget changes: dtype and bias are those of the parameters as they are now.
    spec = replace(
        decided.site.spec,
        kind=own.kind,
        rank=own.rank,
        blocks=own.blocks,
        activation=own.activation,
        scale=own.scale,
    )
    return replace(decided, site=replace(decided.site, spec=spec, note=""))
