"""`docs/layer.svg`: one layer, step by step, drawn from the graphs that the passes really leave."""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape

import torch
from torch import Tensor, fx, nn

import sngd_compile as sngd
from sngd_compile.inspection.drawing import COLOURS
from sngd_compile.passes import PASSES, run_passes
from sngd_compile.plan.planner import make_plan

WIDTH, TEXT, COLUMN, ROW = 760, 236, 118, 27
PANEL = 5 * ROW + 26
BOX, HEIGHT, CELL, LEVELS = 94, 19, 12, 12
CAPTIONS = (
    """As captured
The forward of the layer,
as a graph. SGD steps weight
and bias.""",
    """reparameterise_
weight is folded: w = w' R.
SGD steps w'. As yet R is the
identity.""",
    """observe_
In a training step the inputs
reach the statistics of the
Fisher layer.""",
    """associate_
Fold and product become one
call. It multiplies by R on
the side that is cheaper.""",
    """After a refresh
R is new, and w' moved along:
the same w, and the same
function. The graph stays.""",
)
PLACES = {
    "weight_prime": (0, 0),
    "bias_prime": (0, 1),
    "weight_fisher": (0, 2),
    "observing": (0, 3),
    "input_1": (0, 4.25),
    "fold": (1.08, 1),
    "observe": (1.08, 3),
    "weight": (2.16, 0.5),
    "bias": (2.16, 1.5),
    "linear": (3.24, 2),
    "local_linear": (3.24, 2),
}
"""Column and row of each node, the same in each panel; a node that is not here is an error."""

STYLE = """\
  .card { fill: #ffffff; } .text { fill: #24292f; } .soft { fill: #57606a; }
  .edge { stroke: #6e7781; fill: none; stroke-width: 1.2; } .tip { fill: #6e7781; }
  .line { stroke: #d0d7de; } .lit { fill: #d55e00; opacity: 0; } .ball { fill: #57606a; }
  .node { stroke: #57606a; fill: #ffffff; } .name { fill: #1b1f24; } .gone { opacity: .45; }
  .gone .node { fill: none; stroke-dasharray: 3 3; } .gone .name { fill: #57606a; }
  .cell { fill: #d55e00; } .frame { fill: none; stroke: #8c959f; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #1e2129; } .text { fill: #e6edf3; } .soft { fill: #a9b1bc; }
    .edge { stroke: #a9b1bc; } .tip { fill: #a9b1bc; } .line { stroke: #3d444d; }
    .ball { fill: #6e7781; } .gone .node { stroke: #a9b1bc; } .gone .name { fill: #a9b1bc; }
    .cell { fill: #f0a36b; }
  }
  @media (prefers-reduced-motion: no-preference) {
    .lit { animation: lit 20s infinite; }
    @keyframes lit { 0%, 20%, 100% { opacity: 0; } 3%, 17% { opacity: .14; } }
  }"""


@dataclass(frozen=True)
class Drawn:
    """A node of a graph: its name, what it reads, and the colour of the pass that made it."""

    name: str
    inputs: tuple[str, ...]
    colour: str | None


def drawn(graph: fx.Graph) -> dict[str, Drawn]:
    """Return the nodes of a graph by name, without the one that returns."""
    return {
        node.name: Drawn(
            node.name,
            tuple(source.name for source in node.all_input_nodes),
            COLOURS.get(node.meta.get("pass", "")),
        )
        for node in graph.nodes
        if node.op != "output"
    }


def graphs_of(layer: nn.Module) -> list[dict[str, Drawn]]:
    """Return the graph of a layer as it is captured, then after each pass."""
    module = make_plan(layer, sngd.Config(), {}).modules[0]
    if module.graph is None:
        raise ValueError("the layer has no graph to draw")
    found = [drawn(module.graph)]
    for rewrite in PASSES:
        run_passes(module.graph, [place for _, place in module.sites], [rewrite])
        found.append(drawn(module.graph))
    return found


def matrices() -> dict[str, Tensor]:
    """Train a layer until its root is renewed; return what a refresh changes, and what not."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    inputs = torch.randn(64, 6, generator=generator, dtype=torch.float64) @ mixing
    layer = nn.Linear(6, 4).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 6, generator=generator))
        layer.bias.copy_(torch.randn(4, generator=generator))
    net = sngd.reconstruct(layer, sngd.Config(max_rows=None))
    before = net(inputs)
    sngd.refresh_(net)
    if not torch.allclose(net(inputs), before):
        raise ValueError("the refresh changed the function of the layer")
    fisher = sngd.fisher_layers(net)["weight"]
    parameters = dict(net.named_parameters())
    prime = torch.cat([parameters["weight"], parameters["bias"][:, None]], 1)
    folded = torch.cat([net.weight, net.bias[:, None]], 1)
    return {"G": fisher.factor, "R": fisher.root, "w'": prime, "w = w' R": folded}


def node_svg(node: Drawn) -> str:
    """Draw a box with a name."""
    x, y = position(node.name)
    fill = f' style="fill:{node.colour}"' if node.colour else ""
    return (
        f'<rect class="node" x="{x:g}" y="{y - HEIGHT / 2:g}" width="{BOX}" height="{HEIGHT}" '
        f'rx="4"{fill}/><text class="name" x="{x + BOX / 2:g}" y="{y + 4:g}" '
        f'text-anchor="middle">{escape(node.name)}</text>'
    )


def position(name: str) -> tuple[float, float]:
    """Return the left edge of a box and its middle, in a panel."""
    column, row = PLACES[name]
    return TEXT + column * COLUMN, 26 + row * ROW


def edge_svg(source: str, target: str) -> str:
    """Draw an arrow from one box to another."""
    (x, y), (end_x, end_y) = position(source), position(target)
    x, end_x = x + BOX, end_x - 6
    bend = (end_x - x) * 0.6
    path = f"M{x:g} {y:g} C{x + bend:g} {y:g} {end_x - bend:g} {end_y:g} {end_x:g} {end_y:g}"
    tip = f"M{end_x:g} {end_y - 3.5:g} l6 3.5 l-6 3.5 z"
    return f'<path class="edge" d="{path}"/><path class="tip" d="{tip}"/>'


def graph_svg(graph: dict[str, Drawn], before: dict[str, Drawn]) -> str:
    """Draw a graph, and faintly what the last pass has taken out of it."""
    taken = [replace(node, colour=None) for name, node in before.items() if name not in graph]
    # What is taken out stood where its successor stands: the successor covers it.
    gone = [node for node in taken if PLACES[node.name] not in {PLACES[name] for name in graph}]
    edges = [edge_svg(source, node.name) for node in graph.values() for source in node.inputs]
    parts = ['<g class="gone">', *map(node_svg, gone), "</g>", *edges]
    return "\n".join([*parts, *map(node_svg, graph.values())])


def matrix_svg(name: str, matrix: Tensor, left: float) -> str:
    """Draw a matrix as squares, the darker the larger; its middle is that of the panel."""
    rows, columns = matrix.shape
    top = 30 + (7 - rows) * CELL / 2
    levels = (matrix.detach().abs() / matrix.abs().max() * LEVELS).round()
    cells = [
        f'<rect class="cell" x="{left + j * CELL:g}" y="{top + i * CELL:g}" width="{CELL}" '
        f'height="{CELL}" opacity="{levels[i, j].item() / LEVELS:.2f}"/>'
        for i in range(rows)
        for j in range(columns)
        if levels[i, j]
    ]
    width, height = columns * CELL, rows * CELL
    frame = f'<rect class="frame" x="{left:g}" y="{top:g}" width="{width}" height="{height}"/>'
    place = f'x="{left + width / 2:g}" y="{30 + 7 * CELL + 18}" text-anchor="middle"'
    return "\n".join([*cells, frame, f'<text class="text" {place}>{escape(name)}</text>'])


def matrices_svg() -> str:
    """Draw the factor, the root, w' and w after a refresh."""
    notes = ("mean of x~ x~^T", "R^T R = (G + damping)^-1", "moved along", "as before")
    parts = []
    for index, ((name, matrix), note) in enumerate(zip(matrices().items(), notes, strict=True)):
        left = TEXT + 12 + index * 128
        parts.append(matrix_svg(name, matrix, left))
        place = f'x="{left + 3.5 * CELL:g}" y="{30 + 7 * CELL + 33}" text-anchor="middle"'
        parts.append(f'<text class="soft" font-size="10" {place}>{escape(note)}</text>')
    return "\n".join(parts)


def panel_svg(index: int, content: str) -> str:
    """Draw one step: its number, what happens, and the graph or the matrices after it."""
    title, *lines = CAPTIONS[index].splitlines()
    text = "\n".join(
        f'<text class="soft" x="48" y="{56 + 18 * number}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    return f"""\
<g transform="translate(0 {index * PANEL})" font-size="12">
<rect class="lit" width="{WIDTH}" height="{PANEL}" style="animation-delay:{index * 4}s"/>
<circle class="ball" cx="27" cy="30" r="12"/>
<text x="27" y="34" text-anchor="middle" fill="#fff" font-weight="bold">{index + 1}</text>
<text class="text" x="48" y="35" font-size="15" font-weight="bold">{escape(title)}</text>
{text}
{content}
<line class="line" x1="0" x2="{WIDTH if index else 0}" y1="0" y2="0"/>
</g>"""


def layer_picture() -> str:
    """Return the picture, an SVG that a light and a dark page can show."""
    graphs = graphs_of(nn.Linear(6, 4))
    contents = [
        graph_svg(graph, before) for graph, before in zip(graphs, [{}, *graphs], strict=False)
    ]
    panels = [panel_svg(index, text) for index, text in enumerate([*contents, matrices_svg()])]
    joined = "\n".join(panels)
    words = " ".join(caption.replace("\n", ": ", 1).replace("\n", " ") for caption in CAPTIONS)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {len(panels) * PANEL}" role="img" \
font-family="DejaVu Sans, Verdana, Helvetica, Arial, sans-serif" aria-labelledby="title">
<title id="title">{escape(words)}</title>
<style>
{STYLE}
</style>
<rect class="card" width="{WIDTH}" height="{len(panels) * PANEL}" rx="10"/>
{joined}
</svg>
"""
