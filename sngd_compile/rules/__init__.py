"""One layer family a file; importing this package registers them all."""

from sngd_compile.rules import (
    convolution,
    einsum,
    embedding,
    grouped_product,
    linear,
    lookup,
    normalisation,
    product,
    scale,
    transposed_convolution,
)
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
    "convolution",
    "einsum",
    "embedding",
    "grouped_product",
    "linear",
    "lookup",
    "normalisation",
    "planned_weights",
    "product",
    "register_rule",
    "register_structure",
    "rule_for",
    "runs_known_forward",
    "scale",
    "transposed_convolution",
]
