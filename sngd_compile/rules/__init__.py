"""One layer family a file; importing this package registers them all."""

from sngd_compile.rules import (
    bilinear,
    convolution,
    embedding,
    embedding_bag,
    linear,
    normalisation,
    prelu,
    scale,
    transposed_convolution,
)
from sngd_compile.rules.base import Call, Rule, Use
from sngd_compile.rules.registry import RULES, register_rule, rule_for
from sngd_compile.rules.structure import (
    Planned,
    guess,
    has_structure,
    planned_weights,
    register_structure,
)

__all__ = [
    "RULES",
    "Call",
    "Planned",
    "Rule",
    "Use",
    "bilinear",
    "convolution",
    "embedding",
    "embedding_bag",
    "guess",
    "has_structure",
    "linear",
    "normalisation",
    "planned_weights",
    "prelu",
    "register_rule",
    "register_structure",
    "rule_for",
    "scale",
    "transposed_convolution",
]
