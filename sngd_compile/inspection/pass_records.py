"""What each pass does to each module of a plan, and how long it takes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from time import perf_counter

from sngd_compile.errors import shown
from sngd_compile.passes import PASSES, run_passes
from sngd_compile.plan.records import Plan
from sngd_compile.plan.report import difference_report, graph_report


@dataclass(frozen=True)
class PassRecord:
    """What one pass did to the graph of one module.

    Args:
        module: Qualified name of the module; "" for the model itself.
        name: Of the pass.
        nodes_before: Nodes of the graph.
        nodes_after: The same, after the pass.
        seconds: That it took.
        before: The graph as text.
        after: The same, after the pass.
    """

    module: str
    name: str
    nodes_before: int
    nodes_after: int
    seconds: float
    before: str
    after: str

    @property
    def difference(self) -> str:
        """What changed, a line a node, `-` before and `+` after."""
        return difference_report(self.before, self.after)


class PassRecords(list[PassRecord]):
    """The records of all passes, module by module; prints a line for each pass."""

    def __str__(self) -> str:
        """Return for each pass the modules, the nodes before and after, and the time."""
        found: dict[str, list[PassRecord]] = defaultdict(list)
        for record in self:
            found[record.name].append(record)
        lines = [f"{'pass':<16}  modules  changed  nodes before  nodes after       ms"]
        for name, records in found.items():
            changed = sum(record.before != record.after for record in records)
            before = sum(record.nodes_before for record in records)
            after = sum(record.nodes_after for record in records)
            milliseconds = 1e3 * sum(record.seconds for record in records)
            lines.append(
                f"{name:<16}  {len(records):>7,}  {changed:>7,}  {before:>12,}  {after:>11,}  "
                f"{milliseconds:>7.1f}"
            )
        return "\n".join(lines)

    def differences(self) -> str:
        """Return what each pass changed in each module."""
        return "\n\n".join(
            f"[{shown(record.module) or '.'}] {record.name}\n{record.difference}"
            for record in self
            if record.before != record.after
        )


def run_recorded_(plan: Plan) -> PassRecords:
    """Run the passes on the graphs of a plan, which they change, and record each.

    Args:
        plan: A plan that nobody else holds.
    """
    records = PassRecords()
    for module in plan.modules:
        if module.graph is None or not module.sites:
            continue
        places = [place for _, place in module.sites]
        before = graph_report(module.graph)
        for rewrite in PASSES:
            nodes, begun = len(module.graph.nodes), perf_counter()
            run_passes(module.graph, places, [rewrite])
            seconds = perf_counter() - begun
            after = graph_report(module.graph)
            now = len(module.graph.nodes)
            name = module.module_name
            records.append(PassRecord(name, rewrite.__name__, nodes, now, seconds, before, after))
            before = after
    return records
