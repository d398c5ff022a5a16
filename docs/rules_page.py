"""`docs/rules.md`: every rule of the registry, in the words of its own docstrings."""

from __future__ import annotations

import inspect
import operator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from reference import docstring

import sngd_compile
from sngd_compile.rules import RULES, Rule
from sngd_compile.rules.structure import _structures

TITLE = """\
# Rules

Every rule, what it matches and what it does with it. Generated from the registry and the docstrings
by `make docs ARGS=--write`. [Add a rule](add_a_rule.md) says how another layer joins,
[method](method.md#2-local-fishers) what a row is.

A layer is not asked for its class: what counts is the call that its weight enters, so a layer of
your own that calls `F.linear` is known. In the table, *diagonal* is a local Fisher that is diagonal
by nature; for a rule that is *any*, `Config.fisher` says which. One with an output side takes
`Config(fisher="kronecker")` and `"unit"` too.
"""
BY_CLASS = """\
## Layers known by their class

Where a module's forward cannot be captured it runs as it is, and its calls are observed by the
rules above as they happen. How the weights of these classes are laid out, and of those derived from
them, is known before:
"""
METHOD = ("docs/method.md, local Fishers", "[method, local Fishers](method.md#2-local-fishers)")
PLACES = (("F", F), ("torch", torch), ("operator", operator), ("Tensor", torch.Tensor))


def call_text(target: Any) -> str:
    """Return a target as a user writes it."""
    if isinstance(target, str):
        return target
    name = target.__name__
    for place, holder in PLACES:
        # Methods of a tensor are made anew each time that they are looked up: equal, not the same.
        if getattr(holder, name, None) == target:
            return f"{place}.{name}"
    return f"{target.__module__}.{name}"


def calls_of(rule: Rule) -> str:
    """Return the calls of a rule, each as code."""
    names = dict.fromkeys(map(call_text, rule.targets))
    return ", ".join(f"`{name}`" for name in names) or "none: its modules hand their inputs over"


def kind_of(rule: Rule) -> str:
    """Return which local Fishers a rule takes, in a word or two."""
    if type(rule).match.__annotations__["return"] == "str":
        return "none, with the reason"  # its only answer is why not
    return "diagonal" if rule.kind == "diagonal" else "any"


def source_of(rule: Rule) -> str:
    """Return the path of a rule's file, from the root."""
    root = Path(sngd_compile.__file__).parents[1]
    return Path(inspect.getfile(type(rule))).relative_to(root).as_posix()


def entry(rule: Rule) -> str:
    """Return the part of the page that is about one rule."""
    source = source_of(rule)
    parts = [
        f"### {rule.name}",
        f"Matches {calls_of(rule)}. [{source}](../{source})",
        docstring(type(rule)).replace(*METHOD),
        f"**Match.** {docstring(rule.match)}",
        f"**Rows.** {docstring(rule.rows)}",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def own_rules() -> list[Rule]:
    """Return the rules of the library, by name."""
    rules = [rule for rule in RULES.values() if type(rule).__module__.startswith("sngd_compile.")]
    return sorted(rules, key=lambda rule: rule.name)


def rules_page() -> str:
    """Return the whole page."""
    table = ["| rule | calls | local Fisher | output side |", "|---|---|---|---|"]
    for rule in own_rules():
        anchor = rule.name.replace(" ", "-").replace(".", "")
        side = "yes" if rule.has_output_rows else "no"
        table.append(f"| [{rule.name}](#{anchor}) | {calls_of(rule)} | {kind_of(rule)} | {side} |")
    classes = ", ".join(sorted(f"`nn.{known.__name__}`" for known in _structures))
    entries = "\n".join(entry(rule) for rule in own_rules())
    lines = "\n".join(table)
    return f"{TITLE}\n{lines}\n\n{BY_CLASS}{classes}.\n\n## Rule by rule\n\n{entries}"
