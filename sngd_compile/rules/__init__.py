"""One layer family a file; importing this package registers them all."""

from sngd_compile.rules import convolution, linear
from sngd_compile.rules.base import Call, Rule, Use
from sngd_compile.rules.registry import RULES, register_rule, rule_for

__all__ = ["RULES", "Call", "Rule", "Use", "convolution", "linear", "register_rule", "rule_for"]
