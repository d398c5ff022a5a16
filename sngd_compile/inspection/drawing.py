"""Graphs as text that other programs draw: names are data there, and never markup."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx

from sngd_compile.errors import shown
from sngd_compile.plan.report import assignment, origin_of

COLOURS = {
    "reparameterise_": "#f6c28b",
    "observe_": "#a8d5a2",
    "associate_": "#9ecae8",
}
"""Of the nodes that a pass made; those of the module's own are white."""

OTHER = "#e3e3e3"
"""Of the nodes of any other pass."""

LONGEST = 60
"""Characters of an assignment in a picture."""


def dot_text(graphs: Mapping[str, fx.Graph]) -> str:
    """Return a digraph with a cluster for each module.

    Args:
        graphs: By name of the module.
    """
    lines = ["digraph network {", '  node [shape=box, style=filled, fontname="sans-serif"];']
    for index, (name, graph) in enumerate(graphs.items()):
        lines.append(f"  subgraph cluster_{index} {{ label={_quoted(shown(name) or '.')};")
        for node, identity in _numbered(graph, index):
            colour = _colour(node)
            tip = _quoted(origin_of(node) or "of the module's own")
            label = _quoted(_label(node))
            lines.append(f'    {identity} [label={label}, fillcolor="{colour}", tooltip={tip}];')
        lines.append("  }")
        lines += [f"  {source} -> {target};" for source, target in _edges(graph, index)]
    return "\n".join([*lines, "}"])


def mermaid_text(graphs: Mapping[str, fx.Graph]) -> str:
    """Return a flowchart with a subgraph for each module.

    Args:
        graphs: By name of the module.
    """
    lines = ["flowchart TD"]
    for index, (name, graph) in enumerate(graphs.items()):
        lines.append(f"  subgraph m{index} [{_mermaid_quoted(shown(name) or '.')}]")
        coloured = []
        for node, identity in _numbered(graph, index):
            lines.append(f"    {identity}[{_mermaid_quoted(_label(node))}]")
            if "pass" in node.meta:
                coloured.append(f"  style {identity} fill:{_colour(node)},color:#000")
        lines += [f"    {source} --> {target}" for source, target in _edges(graph, index)]
        lines += ["  end", *coloured]
    return "\n".join(lines)


def _numbered(graph: fx.Graph, module: int) -> Iterator[tuple[fx.Node, str]]:
    # Not by name: a node may be called as a keyword of the other language.
    return ((node, f"n{module}_{index}") for index, node in enumerate(graph.nodes))


def _edges(graph: fx.Graph, module: int) -> Iterator[tuple[str, str]]:
    identities = dict(_numbered(graph, module))
    for node, identity in identities.items():
        for source in node.all_input_nodes:
            yield identities[source], identity


def _label(node: fx.Node) -> str:
    text = shown(assignment(node))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _colour(node: fx.Node) -> str:
    made_by = node.meta.get("pass")
    return "#ffffff" if made_by is None else COLOURS.get(made_by, OTHER)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _mermaid_quoted(text: str) -> str:
    # Mermaid has codes of its own, and `#` begins one.
    codes = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;"}
    return '"' + "".join(codes.get(character, character) for character in text) + '"'
