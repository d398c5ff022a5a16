"""What happens to every parameter: a site, which is reconstructed, or a skip with its reason.

Analysis only: nothing here changes a graph or a tensor.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from fnmatch import fnmatchcase

from torch import Tensor, nn

from sngd_compile.config import Config
from sngd_compile.errors import ConfigError, ModelError, PlanError
from sngd_compile.matching import Overrides, plan_module
from sngd_compile.site import Plan, qualified


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
    tied = tied_names(model)
    plans = []
    for name, module in model.named_modules():
        if any(parameter is not None for parameter in module._parameters.values()):
            plans.append(plan_module(name, module, type(module), config, overrides, tied))
    plan = Plan(tuple(plans))
    _check_complete(model, plan)
    return plan


def _check_overrides(model: nn.Module, overrides: Overrides) -> None:
    names = [name for name, _ in model.named_parameters()]
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


def _check_complete(model: nn.Module, plan: Plan) -> None:
    planned = Counter(skip.name for skip in plan.skips)
    for site in plan.sites:
        planned.update(site.parameter_names)
    owned = {name for names in tied_names(model).values() for name in names}
    wrong = sorted(owned.symmetric_difference(planned)) + [n for n, k in planned.items() if k > 1]
    if wrong:
        raise PlanError(f"{wrong[0]}: planned {planned[wrong[0]]} times, expected once")
