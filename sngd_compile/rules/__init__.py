"""One layer family a file; importing this package registers them all."""

from sngd_compile.rules import (
    bilinear,
    convolution,
    einsum,
    embedding,
    embedding_bag,
    grouped_product,
    linear,
    lookup,
    normalisation,
    prelu,
    product,
    scale,
    transposed_convolution,
    whole_table,
)
from sngd_compile.rules.base import Call, Rule, Use
from sngd_compile.rules.registry import RULES, register_rule, rule_for
from sngd_compile.rules.structure import (
    GUESS,
    Planned,
    planned_weights,
    register_structure,
    runs_known_forward,
)

__all__ = [
    "GUESS",
    "RULES",
    "Call",
    "Planned",
    "Rule",
    "Use",
    "bilinear",
    "convolution",
    "einsum",
    "embedding",
    "embedding_bag",
    "grouped_product",
    "linear",
    "lookup",
    "normalisation",
    "planned_weights",
    "prelu",
    "product",
    "register_rule",
    "register_structure",
    "rule_for",
    "runs_known_forward",
    "scale",
    "transposed_convolution",
    "whole_table",
]
