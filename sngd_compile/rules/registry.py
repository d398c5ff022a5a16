"""The ordered list of rules, and how one joins it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from sngd_compile.errors import RuleError
from sngd_compile.registry import RULES as RULES
from sngd_compile.rules.base import Rule
from sngd_compile.torch_private import OpOverload, OpOverloadPacket, name_of_operator

_by_target: dict[Any, Rule] = {}

RuleClass = TypeVar("RuleClass", bound=type[Rule])


def register_rule(rule_class: RuleClass) -> RuleClass:
    """Register a rule, as a class decorator; networks reconstructed from now on use it.

    Registering a class of the same module and name again replaces it, so that a notebook cell can
    run twice.

    Args:
        rule_class: Subclass of `Rule` with `name`, `targets` and `signature`.

    Returns:
        The class itself.

    Raises:
        RuleError: A field is missing, or another rule has the name or one of the targets.
    """
    for field, expected in (("name", str), ("targets", tuple), ("signature", inspect.Signature)):
        if not isinstance(getattr(rule_class, field, None), expected):
            raise RuleError(f"{rule_class.__name__}.{field}: expected a {expected.__name__}")
    holders = [RULES.get(rule_class.name), *(_by_target.get(t) for t in rule_class.targets)]
    for holder in holders:
        if holder is not None and _identity(type(holder)) != _identity(rule_class):
            raise RuleError(
                f"{rule_class.__name__} ({rule_class.name!r}): {type(holder).__name__} "
                f"({holder.name!r}) has its name or one of its targets"
            )
    rule = rule_class()
    RULES[rule.name] = rule
    _by_target.update(dict.fromkeys(rule.targets, rule))
    return rule_class


def rule_for(target: Callable[..., Any] | str) -> Rule | None:
    """Return the rule that understands calls of `target`, a function or the name of a method."""
    if isinstance(target, OpOverload):
        target = target.overloadpacket
    if isinstance(target, OpOverloadPacket):
        # By name as well: the package that registers the operator may not be installed.
        return _by_target.get(target, _by_target.get(name_of_operator(target)))
    return _by_target.get(getattr(Tensor, target, None) if isinstance(target, str) else target)


def _identity(rule_class: type[Rule]) -> tuple[str, str]:
    return rule_class.__module__, rule_class.__qualname__
