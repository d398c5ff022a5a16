"""Reports, as text: of a plan, of a graph, of the difference of two graphs."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import fx

from sngd_compile.errors import ConfigError, shown
from sngd_compile.plan.records import Plan, Site, bytes_text, fisher_text
from sngd_compile.plan.totals import ASSUMED_ROWS, Totals, totals_of

Row = tuple[str, ...]
"""The cells of a line."""

LONGEST_INDEX = 10
"""Digits from which on a name is no index of a layer."""


def plan_report(plan: Plan) -> str:
    """Return a plan as tables: each parameter, its rule and cost or why it is left; totals."""
    return joined(blocks_of(plan, totals_of(plan)))


@dataclass(frozen=True)
class Block:
    """A part of a report.

    Args:
        text: What stands above the table.
        rows: The table, its header first; empty where there is none.
    """

    text: str
    rows: list[Row] = field(default_factory=list)


def joined(blocks: Iterable[Block]) -> str:
    """Return the parts of a report as plain text."""
    parts = [part for block in blocks for part in (block.text, _table(block.rows)) if part]
    return "\n\n".join(parts)


ORDERS: dict[str, Callable[[Site], int]] = {
    "order": lambda site: 0,
    "state": lambda site: -site.state_bytes,
    "step": lambda site: -site.step_work,
    "refresh": lambda site: -site.refresh_work,
}
"""What the weights of a report can be sorted by: the model's order, or a cost, highest first."""


def blocks_of(plan: Plan, totals: Totals, by: str = "order") -> list[Block]:
    """Return the parts of a report, one after the other.

    Args:
        plan: The plan.
        totals: What it adds up to.
        by: A key of `ORDERS`.

    Raises:
        ConfigError: `by` is none.
    """
    if by not in ORDERS:
        raise ConfigError(f"by = {by!r}: expected one of {', '.join(map(repr, ORDERS))}")
    sites = sorted(plan.sites, key=ORDERS[by])
    total = sum(site.parameter_count for site in sites)
    kept = sum(_elements(skip.shape) for skip in plan.skips)
    if total + kept == 0:
        return [Block("no parameters: nothing to reconstruct")]
    share = 100.0 * total / (total + kept)
    # What was planned is a promise: after training the first line says how much of it was kept.
    seen = f", {round(totals.observed_share * total):,} of them observed"
    first = (
        f"reconstructed: {_plural(len(sites), 'weight')}, "
        f"{total:,} of {total + kept:,} elements "
        f"({share:.1f} %){seen if totals.is_trained else ''}"
    )
    blocks = [Block(first)]
    if sites:
        header = ("weight", "shape", "rule", "Fisher", "state", "work/step", "work/refresh")
        blocks = [Block(first, [header, *_grouped(map(_site_row, sites))])]
    noted = [(site.name, site.note) for site in sites if site.note]
    if noted:
        rows = [("weight", "note"), *_grouped(noted)]
        blocks.append(Block(f"notes on {len(noted)} of them", rows))
    if plan.skips:
        left = [(skip.name, shape_text(skip.shape), skip.reason) for skip in plan.skips]
        text = f"left as they are: {_plural(len(left), 'parameter')}, {_plural(kept, 'element')}"
        blocks.append(Block(text, [("parameter", "shape", "reason"), *_grouped(left)]))
    return [*blocks, Block(_totals_text(totals))]


def graph_report(graph: fx.Graph) -> str:
    """Return a graph as assignments, one node a line, and where each inserted one is from."""
    lines = [(shown(assignment(node)), origin_of(node)) for node in graph.nodes]
    width = max(len(text) for text, _ in lines)
    return "\n".join(f"{text:<{width}}  # {origin}" if origin else text for text, origin in lines)


def origin_of(node: fx.Node) -> str:
    """Say which pass made a node, for which rules, and for the calls in which lines of the model.

    "" for a node of the module's own.
    """
    made_by, why = node.meta.get("pass", ""), node.meta.get("for", "")
    return shown(f"{made_by}: {why}" if why else made_by)


def difference_report(before: str, after: str) -> str:
    """Return what changed between two reports, a line each, `-` before and `+` after.

    How far right a comment stands is no difference.
    """
    old, new = (re.sub(r" +  # ", "  # ", text).splitlines() for text in (before, after))
    return "\n".join(line for line in difflib.ndiff(old, new) if not line.startswith("? "))


def _totals_text(totals: Totals) -> str:
    """Return the last block: what all of it costs, and how much of the network it covers."""
    if not totals.state_bytes:
        return "There are no Fisher layers."
    ratio = 100 * totals.work_per_step
    work = f"{ratio:.0f} %" if ratio >= 100 else f"{ratio:.3g} %"
    lines = [f"The Fisher layers take {bytes_text(totals.state_bytes)} in all."]
    if totals.budget is not None:
        lines.append(
            f"That is above memory_budget = {totals.budget:,} bytes: "
            "raise it, or leave weights out with overrides."
        )
    if totals.is_observed:
        lines.append(f"The roots add {work} to the multiply-adds of a step, at the rows observed.")
    else:
        lines.append(
            f"The roots add {work} to the multiply-adds of a step of {ASSUMED_ROWS} rows; "
            "the more rows, the less."
        )
    share = f"{100 * totals.reconstructed_share:.1f} %"
    lines.append(f"Of all elements that require a gradient {share} are reconstructed.")
    if totals.is_trained:
        seen = f"{100 * totals.observed_share:.1f} %"
        lines.append(f"Of those {seen} have Fisher layers that have seen rows.")
    return "\n".join(lines)


def _grouped(rows: Iterable[Row]) -> list[Row]:
    """Return rows that are equal but for an index in the name, their first cell, as one.

    The range of the index stands in its place, and behind the name how many weights there are. A
    line stands where the first of them would.
    """
    found = [(name.split("."), 1, rest) for name, *rest in rows]
    # From the innermost index out: experts in layers, all alike, become one line with two ranges.
    for depth in reversed(range(max((len(parts) for parts, _, _ in found), default=0))):
        alike: dict[object, list[tuple[list[str], int, list[str]]]] = defaultdict(list)
        for row in found:
            parts, count, rest = row
            around = (*parts[:depth], None, *parts[depth + 1 :])
            is_index = depth < len(parts) and _is_index(parts[depth])
            alike[(around, count, *rest) if is_index else id(row)].append(row)
        found = [_as_one(group, depth) for group in alike.values()]
    return [
        (".".join(parts) + (f"  x{count}" if count > 1 else ""), *rest)
        for parts, count, rest in found
    ]


def _as_one(
    group: Sequence[tuple[list[str], int, list[str]]], depth: int
) -> tuple[list[str], int, list[str]]:
    """Return rows whose names differ in one index as the one that has its range."""
    parts, count, rest = group[0]
    if len(group) == 1:
        return parts, count, rest
    indices = _range(sorted(int(parts[depth]) for parts, _, _ in group))
    return [*parts[:depth], indices, *parts[depth + 1 :]], count * len(group), rest


def _is_index(part: str) -> bool:
    # As `ModuleList` writes it: a key "01" of a `ModuleDict` would not come back as it is, and of
    # one with thousands of digits Python makes no number.
    return part.isdecimal() and len(part) < LONGEST_INDEX and str(int(part)) == part


def _range(numbers: Sequence[int]) -> str:
    """Write increasing numbers as `{0..31}`, with a step as `{0..30..2}`, others one by one."""
    first, last, step = numbers[0], numbers[-1], numbers[1] - numbers[0]
    if list(numbers) == [*range(first, last + 1, step)]:
        if step == 1:
            return f"{{{first}..{last}}}"
        if len(numbers) > 2:
            return f"{{{first}..{last}..{step}}}"
    return "{" + ",".join(map(str, numbers)) + "}"


def _site_row(site: Site) -> Row:
    name = site.name + ("" if site.bias_name is None else f" + {site.bias_name}")
    work = (count_text(site.step_work), count_text(site.refresh_work))
    state = bytes_text(site.state_bytes)
    fisher = fisher_text(site.spec)
    if 0 < site.root_columns < site.spec.rank:
        fisher += f", {site.root_columns} in its root"
    return (name, shape_text(site.shape), site.rule, fisher, state, *work)


def assignment(node: fx.Node) -> str:
    """Write a node as an assignment."""
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
    if not rows:
        return ""
    rows = [[shown(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(len(line) for line in lines), *lines[1:]])


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def shape_text(shape: Iterable[int]) -> str:
    """Write a shape as a list."""
    return "[" + ", ".join(map(str, shape)) + "]"


def _elements(shape: Iterable[int]) -> int:
    total = 1
    for extent in shape:
        total *= extent
    return total


def count_text(number: int) -> str:
    """Write a number with one digit behind the point, in thousands, millions or more."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
