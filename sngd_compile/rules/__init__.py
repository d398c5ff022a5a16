"""One layer family a file; importing this package imports every file in it, which registers all."""

from importlib import import_module
from pkgutil import iter_modules

from sngd_compile.rules.base import Call, Rule, Use
from sngd_compile.rules.registry import RULES, register_rule, rule_for
from sngd_compile.rules.structure import (
    Planned,
    planned_weights,
    register_structure,
    runs_known_forward,
)

__all__ = [
    "RULES",
    "Call",
    "Planned",
    "Rule",
    "Use",
    "planned_weights",
    "register_rule",
    "register_structure",
    "rule_for",
    "runs_known_forward",
]

# A rule is found because its file is here, so that a new one touches no other file. The names above
# come first: a rule's file may import them from this package while it is still being imported. The
# order is alphabetical, whatever the file system says, so that `RULES` lists the same everywhere;
# which rule takes a call never depends on it, since a target belongs to one rule only. A rule that
# builds on another imports its file.
for _name in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_name}")
