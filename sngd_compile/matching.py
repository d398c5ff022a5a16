"""From one captured module to its sites and skips, by the rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from fnmatch import fnmatchcase

from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from sngd_compile.bytecode import UncapturableError
from sngd_compile.capture import capture
from sngd_compile.config import Config
from sngd_compile.errors import PlanError
from sngd_compile.rules import Use, rule_for
from sngd_compile.site import ModulePlan, Site, Skip, qualified

Overrides = Mapping[str, Config | None]
Uses = list[tuple[fx.Node, Use]]

RESERVED_NAMES = ("names", "program", "observing", "local_sites", "original_class")
"""Attributes that a module gets when it is reconstructed."""

_LONE_BIAS = "a bias that joins no local Fisher: it or its weight is left, or it is used elsewhere"


def plan_module(
    module_name: str,
    module: nn.Module,
    module_class: type[nn.Module],
    config: Config | None,
    overrides: Overrides,
    tied: Mapping[Tensor, list[str]],
) -> ModulePlan:
    """Decide for the parameters that one module owns itself.

    Args:
        module_name: Qualified name of the module; "" for the model itself.
        module: The module.
        module_class: Its class, of a reconstructed module the original one.
        config: For every weight that no override names; None leaves it.
        overrides: Glob patterns of qualified weight names to their configuration.
        tied: Every name of every parameter of the model.
    """
    owned = {name: p for name, p in module._parameters.items() if p is not None}
    reasons = {name: reason for name, p in owned.items() if (reason := _reason_to_leave(p, tied))}
    configs = {
        name: _config_of(qualified(module_name, name), config, overrides)
        for name in owned.keys() - reasons.keys()
    }
    graph: fx.Graph | None = None
    sites: list[Site] = []
    try:
        graph = capture(module, module_class) if configs else None
    except UncapturableError as error:
        reasons |= dict.fromkeys(configs, f"its module cannot be captured: {error}")
    if graph is not None:
        sites, refused = _Matcher(module_name, graph, owned).sites(configs)
        reasons |= refused
    obstacle = _obstacle(module, module_class, owned) if sites else None
    if obstacle:
        pairs = [(site.weight_name, site.bias_name) for site in sites]
        reasons |= {name: obstacle for pair in pairs for name in pair if name}
        sites = []
    skips = [
        _skip(module_name, name, owned[name], reasons[name]) for name in owned if name in reasons
    ]
    return ModulePlan(module_name, module, graph, tuple(sites), tuple(skips))


def match_again(
    module: nn.Module,
    module_class: type[nn.Module],
    names: Mapping[str, str | None],
    configs: Mapping[str, Config],
) -> tuple[fx.Graph, list[Site]]:
    """Find the sites of a module that is reconstructed already, after a copy or a load.

    Args:
        module: The module, its parameters being `w'`.
        module_class: Its original class.
        names: Attribute name of each reconstructed weight, with that of its bias.
        configs: The configuration of each.

    Raises:
        PlanError: The class's forward has changed and no longer uses the weights as it did.
    """
    owned = {name: p for name, p in module._parameters.items() if p is not None}
    try:
        graph = capture(module, module_class)
    except UncapturableError as error:
        raise PlanError(f"{module_class.__name__} cannot be captured any more: {error}") from error
    matcher = _Matcher("", graph, owned)
    sites = []
    for name, bias in names.items():
        found = matcher.site(name, configs[name], may_join={bias} if bias else set())
        if not isinstance(found, Site) or found.bias_name != bias:
            raise PlanError(
                f"{module_class.__name__}.{name}: its forward is not the one that was "
                f"reconstructed ({found}); load the state dict into a new network instead"
            )
        sites.append(found)
    return graph, sites


class _Matcher:
    """Match the parameters of one captured module with the rules."""

    def __init__(
        self, module_name: str, graph: fx.Graph, owned: Mapping[str, nn.Parameter]
    ) -> None:
        self.module_name, self.owned = module_name, owned
        self.nodes: dict[str, list[fx.Node]] = defaultdict(list)
        self.parameters: dict[fx.Node, Tensor] = {}
        for node in graph.nodes:
            if node.op == "get_attr" and node.target in owned:
                self.nodes[node.target].append(node)
                self.parameters[node] = owned[node.target]

    def sites(self, configs: Mapping[str, Config | None]) -> tuple[list[Site], dict[str, str]]:
        """Return the sites of the parameters in `configs`, and why the rest of them have none."""
        sites: list[Site] = []
        reasons: dict[str, str] = {}
        wanted = {name for name, config in configs.items() if config is not None}
        for name in (name for name in self.owned if name in configs):
            config = configs[name]
            found = self.site(name, config or Config(), may_join=wanted)
            if isinstance(found, str):
                reasons[name] = found
            elif config is None:
                reasons[name] = "left out by an override"
            else:
                sites.append(found)
        for site in sites:
            reasons.pop(site.bias_name or "", None)
        return sites, reasons

    def site(self, name: str, config: Config, may_join: Set[str]) -> Site | str:
        """Return the site of the weight `name`, or the reason why there is none.

        A bias in `may_join` joins the local Fisher if these calls alone use it.
        """
        uses = self._uses(name)
        if isinstance(uses, str):
            return uses
        kinds = {(rule_for(node.target), use.groups, _target(use.bias)) for node, use in uses}
        rule, groups, bias = kinds.pop()
        if kinds or rule is None:
            return "its uses differ in kind, groups or bias"
        parameter = self.owned[name]
        if bias is not None and not (
            bias in may_join
            and self._calls(bias) == self._calls(name)
            and self.owned[bias].shape == parameter.shape[:1]
        ):
            bias = None
        shape, dtype = tuple(parameter.shape), parameter.dtype
        return Site(self.module_name, name, bias, shape, dtype, groups, rule, config, tuple(uses))

    def _calls(self, name: str) -> dict[fx.Node, None]:
        return dict.fromkeys(node for get in self.nodes[name] for node in get.users)

    def _uses(self, name: str) -> Uses | str:
        """Match every call that the parameter enters, or say which one no rule takes."""
        calls = self._calls(name)
        if not calls:
            return "its module's forward does not use it"
        uses: Uses = []
        for node in calls:
            found = self._match(name, node)
            if isinstance(found, str):
                return found
            uses.append((node, found))
        return uses

    def _match(self, name: str, node: fx.Node) -> Use | str:
        rule = rule_for(node.target) if node.op == "call_function" else None
        if rule is None:
            return f"no rule for {_where(node)}"
        try:
            call = rule.bind(node, self.parameters)
        except TypeError:
            return f"no rule for these arguments of {_where(node)}"
        found = rule.match(call)
        if isinstance(found, Use) and found.weight not in self.nodes[name]:
            return _LONE_BIAS
        if isinstance(found, Use) and not set(self.nodes[name]).isdisjoint(found.inputs):
            return f"it is also the input of {_where(node)}"
        return found


def _obstacle(
    module: nn.Module, module_class: type[nn.Module], owned: Mapping[str, nn.Parameter]
) -> str | None:
    """Say why a module with sites cannot become a reconstructed one."""
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return "its module counts its children, and a Fisher layer would be one more"
    own_copying = (
        hasattr(module_class, "__deepcopy__")
        or hasattr(module_class, "__copy__")
        or module_class.__reduce_ex__ is not object.__reduce_ex__
        or module_class.__reduce__ is not object.__reduce__
    )
    if own_copying:
        return f"{module_class.__name__} copies itself in a way of its own"
    needed = [f"{name}_{end}" for name in owned for end in ("fisher", "prime")]
    taken = [name for name in (*RESERVED_NAMES, *needed) if hasattr(module, name)]
    if taken and type(module) is module_class:
        return f"its module has an attribute {taken[0]!r}, which a reconstructed one needs"
    return None


def _reason_to_leave(parameter: nn.Parameter, tied: Mapping[Tensor, list[str]]) -> str | None:
    if is_lazy(parameter):
        return "not initialised yet: run one forward pass, then reconstruct"
    if not parameter.requires_grad:
        return "frozen (requires_grad=False)"
    if parameter.numel() == 0:
        return "it has no elements"
    if not parameter.is_floating_point():
        return f"its dtype {parameter.dtype} is not real floating point"
    if len(tied[parameter]) > 1:
        return f"shared under {len(tied[parameter])} names: {', '.join(tied[parameter])}"
    return None


def _target(bias: fx.Node | None) -> str | None:
    return None if bias is None else str(bias.target)


def _where(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else node.target.__name__
    return f"{target} (node {node.name})"


def _skip(module_name: str, name: str, parameter: nn.Parameter, reason: str) -> Skip:
    shape = () if is_lazy(parameter) else tuple(parameter.shape)
    return Skip(qualified(module_name, name), shape, reason)


def _config_of(name: str, config: Config | None, overrides: Overrides) -> Config | None:
    chosen = config
    for pattern, override in overrides.items():
        if fnmatchcase(name, pattern):
            chosen = override
    return chosen
