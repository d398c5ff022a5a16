"""Looking at plans, graphs and Fisher layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, fx, nn

from sngd_compile.backend.compiled_models import COMPILED, parameters_of, plan_of_compiled
from sngd_compile.backend.parameter_state import state_of
from sngd_compile.config import Config
from sngd_compile.errors import shown
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.modules.reconstructed import Reconstructed, reconstructed_modules
from sngd_compile.plan.budget import keep_to_budget
from sngd_compile.plan.decision import Decision
from sngd_compile.plan.planner import Overrides, Settle, make_plan, plan_of
from sngd_compile.plan.records import Plan, bytes_text, qualified
from sngd_compile.plan.report import graph_report, plan_report
from sngd_compile.plan.totals import totals_of
from sngd_compile.training.diagnosis import notes_of
from sngd_compile.training.joint_roots import sent_bytes
from sngd_compile.training.refresh import Site


class Explanation:
    """A plan that prints itself; `sites` and `skips` are its records, one for each weight.

    Attributes:
        state_bytes: Memory of all Fisher layers, in bytes: of a network that of their buffers, of
            a model what they will be.
        work_per_step: Multiply-adds that the roots add to a step, forward and backward, over those
            of the weights, `3 N O K` for N rows, O outputs and K weights of one output; each root
            on the cheaper side. N is the mean of the rows that a layer has counted in an observed
            step, at most `Config.max_rows` of a pass; while no layer has counted any, 256. Tables
            that are looked up are left out.
        reconstructed_share: Elements of the parameters that are reconstructed, over those of all
            that require a gradient; 0.0 where there are none.
        sent_bytes: What each process gives to the messages of a refresh and of the observed steps
            since the one before, in bytes, by its number; () where no processes train together, or
            no step has been taken under `fully_shard`.
        observed_share: Elements of the weights (and biases) whose Fisher layer has seen rows, over
            all that are reconstructed; 0.0 before training.
    """

    def __init__(self, plan: Plan, layers: Mapping[str, FisherLayer] | None = None) -> None:
        """Hold the plan, and add it up with the Fisher layers that there are."""
        self.plan, self.sites, self.skips = plan, plan.sites, plan.skips
        self._totals = totals_of(plan, layers)
        self.state_bytes = self._totals.state_bytes
        self.work_per_step = self._totals.work_per_step
        self.reconstructed_share = self._totals.reconstructed_share
        self.observed_share = self._totals.observed_share
        self.sent_bytes = sent_bytes({id(f): f for f in (layers or {}).values()}.values())

    def __str__(self) -> str:
        """Return the tables, every parameter with rule and cost or why it is left, and totals."""
        text = plan_report(self.plan, self._totals)
        if self.sent_bytes:
            each = ", ".join(map(bytes_text, self.sent_bytes))
            text += f"\nFor a refresh {len(self.sent_bytes)} processes send, in turn: {each}."
        return text


class Graphs(dict[str, fx.Graph]):
    """FX graphs of the reconstructed modules by qualified name; prints itself."""

    def __str__(self) -> str:
        """Return every graph as assignments, with the pass that put a node there."""
        parts = (f"[{shown(name) or '.'}]\n{graph_report(graph)}" for name, graph in self.items())
        return "\n\n".join(parts)


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
    if isinstance(model, nn.Module) and COMPILED.includes(model):
        return Explanation(plan_of_compiled(model), fisher_layers(model))
    if reconstructed_modules(model):
        return Explanation(_plan_of_network(model), fisher_layers(model))
    return Explanation(make_plan(model, Config() if config is None else config, overrides or {}))


def graph(net: nn.Module) -> Graphs:
    """Return the FX graphs that run in a reconstructed network, by module name.

    Nodes that a pass created carry its name in `node.meta["pass"]`.
    """
    found = {name: m.program for name, m in reconstructed_modules(net).items()}
    return Graphs({name: program.graph for name, program in found.items() if program.graph})


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
    return plan_of(net, config_of, class_of, _as_they_are(net)).noted(notes)


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
