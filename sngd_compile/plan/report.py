"""Reports, as text: of a plan, of a graph, of the difference of two graphs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from torch import fx

from sngd_compile.errors import shown
from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.plan.records import Plan, Site


def plan_report(plan: Plan) -> str:
    """Return a plan as a table: every parameter, its rule and cost, or why it is left."""
    total = sum(site.parameter_count for site in plan.sites)
    kept = sum(_elements(skip.shape) for skip in plan.skips)
    if total + kept == 0:
        return "no parameters: nothing to reconstruct"
    share = 100.0 * total / (total + kept)
    parts = [
        f"reconstructed: {_plural(len(plan.sites), 'weight')}, "
        f"{total:,} of {total + kept:,} elements "
        f"({share:.1f} %)"
    ]
    if plan.sites:
        header = ("weight", "shape", "rule", "Fisher", "state", "work/step", "work/refresh")
        parts.append(_table([header, *(_site_row(site) for site in plan.sites)]))
    noted = [(site.name, site.note) for site in plan.sites if site.note]
    if noted:
        parts.append(f"notes on {len(noted)} of them")
        parts.append(_table([("weight", "note"), *noted]))
    if plan.skips:
        rows = [(skip.name, _shape(skip.shape), skip.reason) for skip in plan.skips]
        left = _plural(len(rows), "parameter")
        parts.append(f"left as they are: {left}, {_plural(kept, 'element')}")
        parts.append(_table([("parameter", "shape", "reason"), *rows]))
    return "\n\n".join(parts)


def graph_report(graph: fx.Graph) -> str:
    """Return a graph as assignments, one node a line, with the pass that put the node there."""
    lines = [(shown(_assignment(node)), node.meta.get("pass", "")) for node in graph.nodes]
    width = max(len(text) for text, _ in lines)
    return "\n".join(f"{text:<{width}}  # {origin}" if origin else text for text, origin in lines)


def difference_report(before: str, after: str) -> str:
    """Return what changed between two reports, a line each, `-` before and `+` after.

    How far right a comment stands is no difference.
    """
    old, new = (re.sub(r" +  # ", "  # ", text).splitlines() for text in (before, after))
    return "\n".join(line for line in difflib.ndiff(old, new) if not line.startswith("? "))


def _site_row(site: Site) -> tuple[str, ...]:
    name = site.name + ("" if site.bias_name is None else f" + {site.bias_name}")
    fisher = f"{site.kind} {kind_of(site.spec).factor_text(site.spec)}"
    work = (_count(site.step_work), _count(site.refresh_work))
    return (name, _shape(site.shape), site.rule, fisher, _bytes(site.state_bytes), *work)


def _assignment(node: fx.Node) -> str:
    if node.op == "placeholder":
        return f"{node.name} = argument {node.target}"
    if node.op == "output":
        return f"return {node.args[0]}"
    arguments = ", ".join(
        [*(str(a) for a in node.args), *(f"{key}={value}" for key, value in node.kwargs.items())]
    )
    if node.op == "get_attr":
        return f"{node.name} = self.{node.target}"
    if node.op == "call_module":
        return f"{node.name} = self.{node.target}({arguments})"
    target = node.target if isinstance(node.target, str) else node.target.__name__
    return f"{node.name} = {target}({arguments})"


def _table(rows: Sequence[Sequence[str]]) -> str:
    rows = [[shown(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(len(line) for line in lines), *lines[1:]])


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _shape(shape: Iterable[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _elements(shape: Iterable[int]) -> int:
    total = 1
    for extent in shape:
        total *= extent
    return total


def _bytes(number: int) -> str:
    return f"{number / 2**20:.2f} MiB" if number >= 2**20 else f"{number / 2**10:.1f} KiB"


def _count(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
