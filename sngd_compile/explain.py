"""Looking at plans, graphs and Fisher layers."""

from __future__ import annotations

from torch import fx, nn

from sngd_compile.backend.compiled_models import COMPILED, parameters_of, plan_of_compiled
from sngd_compile.backend.parameter_state import state_of
from sngd_compile.config import Config
from sngd_compile.errors import shown
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.modules.reconstructed import Reconstructed, reconstructed_modules
from sngd_compile.plan.planner import Overrides, make_plan, plan_of
from sngd_compile.plan.records import Plan, qualified
from sngd_compile.plan.report import graph_report, plan_report
from sngd_compile.training.diagnosis import notes_of


class Explanation:
    """A plan that prints itself; `sites` and `skips` are its records."""

    def __init__(self, plan: Plan) -> None:
        """Hold the plan."""
        self.plan, self.sites, self.skips = plan, plan.sites, plan.skips

    def __str__(self) -> str:
        """Return the table: every parameter, its rule and cost, or why it is left."""
        return plan_report(self.plan)


class Graphs(dict[str, fx.Graph]):
    """FX graphs of the reconstructed modules by qualified name; prints itself."""

    def __str__(self) -> str:
        """Return every graph as assignments, with the pass that put a node there."""
        parts = (f"[{shown(name) or '.'}]\n{graph_report(graph)}" for name, graph in self.items())
        return "\n\n".join(parts)


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
        What `print` shows as a table. Work is counted in multiply-adds: the most that a step gets
        from the root, and a refresh.

    Raises:
        ModelError: `model` is no module.
        ConfigError: `config` is none, or an override matches no parameter.
    """
    if isinstance(model, nn.Module) and COMPILED.includes(model):
        return Explanation(plan_of_compiled(model))
    if reconstructed_modules(model):
        return Explanation(_plan_of_network(model))
    return Explanation(make_plan(model, Config() if config is None else config, overrides or {}))


def graph(net: nn.Module) -> Graphs:
    """Return the FX graphs that run in a reconstructed network, by module name.

    Nodes that a pass created carry its name in `node.meta["pass"]`.
    """
    found = {name: m.program for name, m in reconstructed_modules(net).items()}
    return Graphs({name: program.graph for name, program in found.items() if program})


def fisher_layers(net: nn.Module) -> dict[str, FisherLayer]:
    """Map the qualified name of each reconstructed weight to its Fisher layer.

    Of a model compiled with `backend="sngd"`: of each weight that a frame has used.
    """
    modules = reconstructed_modules(net)
    states = [(names, state_of(parameter)) for parameter, names in parameters_of(net).items()]
    compiled = {name: state.fisher for names, state in states if state for name in names}
    return compiled | {
        qualified(name, site.weight_name): site.fisher
        for name, module in modules.items()
        for site in module.local_sites()
    }


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
    return plan_of(net, config_of, class_of).noted(notes)
