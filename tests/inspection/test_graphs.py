"""The graphs of a network before and after the passes, as text, Python and pictures."""

import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from sngd_compile.errors import ModelError, SngdError


class Twice(nn.Module):
    """A weight with two uses, and a nasty name for its child."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.parts = nn.ModuleDict({'<b>"x"\n': nn.Conv1d(4, 4, 3)})

    def forward(self, x):
        y = nn.functional.linear(x, self.weight)
        for part in self.parts.values():
            y = part(y.mT).mT
        return nn.functional.linear(y, self.weight)


NAME = 'parts.<b>"x"\n'


@pytest.fixture
def net():
    return sngd.reconstruct(Twice())


def test_every_inserted_node_says_its_pass_and_what_it_is_for(net):
    source = Path(__file__).read_text().splitlines()
    lines = {number for number, line in enumerate(source, 1) if "linear(" in line}
    for name, rule in (("", "linear"), (NAME, "convolution")):
        inserted = [node for node in sngd.graph(net)[name].nodes if "pass" in node.meta]
        assert inserted
        for node in inserted:
            if node.target == "observing":
                continue
            assert node.meta["pass"] in ("reparameterise_", "observe_", "associate_")
            assert node.meta.get("for", "").startswith(rule)
            # A forward of torch's own is no line of the model.
            assert (" at " in node.meta["for"]) is (not name)
            if not name:
                found = re.findall(r"test_graphs\.py:(\d+)", node.meta["for"])
                assert len(found) == 2
                assert {*map(int, found)} <= lines


def test_many_calls_of_one_weight_are_not_all_named():
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(3))

        def forward(self, x):
            x = nn.functional.linear(x, self.weight)
            x = nn.functional.linear(x, self.weight)
            x = nn.functional.linear(x, self.weight)
            x = nn.functional.linear(x, self.weight)
            return nn.functional.linear(x, self.weight)

    graph = sngd.graph(sngd.reconstruct(Unrolled()))[""]
    assert all(node.meta["for"].endswith(", 2 more") for node in graph.nodes if "for" in node.meta)


def test_graphs_of_before_are_those_that_were_captured(net):
    graphs = sngd.graph(net)
    before = graphs.before
    assert before.keys() == graphs.keys() == {"", NAME}
    assert not any("pass" in node.meta for graph in before.values() for node in graph.nodes)
    assert [node.name for node in before[""].nodes].count("linear_1") == 1
    # What runs is not touched by looking.
    again = sngd.graph(net).before
    assert [str(graph) for graph in again.values()] == [str(graph) for graph in before.values()]


def test_one_module_alone(net):
    alone = sngd.graph(net, NAME)
    assert [*alone] == [NAME] == [*alone.before]
    assert alone[NAME] is sngd.graph(net)[NAME]
    with pytest.raises(ModelError, match=r"'nothing' is no reconstructed module.*''"):
        sngd.graph(net, "nothing")


def test_the_difference_has_the_lines_of_both(net):
    difference = sngd.graph(net, NAME).difference().splitlines()
    gone = [line[2:] for line in difference if line.startswith("- ")]
    come = [line[2:] for line in difference if line.startswith("+ ")]
    assert {"weight = self.weight", "bias = self.bias"} <= {*gone}
    assert any(line.startswith("fold = fold(weight_fisher, ") for line in come)
    # The line of the header is no line of a graph.
    kept = len(difference) - 1 - len(gone)
    assert kept == len(sngd.graph(net)[NAME].nodes)


def test_the_python_is_that_which_runs(net):
    source = sngd.graph(net, "").python()
    assert source.partition("\n")[2] == net.program.source


@pytest.mark.parametrize("form", ["dot", "mermaid"])
def test_a_picture_has_every_node_and_every_edge(net, form):
    graphs = sngd.graph(net)
    text = getattr(graphs, form)()
    nodes = [node for graph in graphs.values() for node in graph.nodes]
    edges = sum(len(node.all_input_nodes) for node in nodes)
    arrow = " -> " if form == "dot" else " --> "
    assert text.count(arrow) == edges
    assert len(set(re.findall(r"^\s+(n\d+_\d+)\b ?\[", text, re.M))) == len(nodes)
    made = sum("pass" in node.meta for node in nodes)
    assert len(re.findall(r'fillcolor="#(?!ffffff)' if form == "dot" else "fill:#", text)) == made


@pytest.mark.parametrize("form", ["dot", "mermaid"])
def test_names_are_no_markup(net, form):
    text = getattr(sngd.graph(net, NAME), form)()
    assert len(text.splitlines()) == len(text.split("\n"))
    label = next(line for line in text.splitlines() if "parts." in line)
    if form == "dot":
        assert 'label="parts.<b>\\"x\\"\\\\n"' in label
    else:
        assert "<b>" not in text
        assert "parts.#lt;b#gt;#quot;x#quot;" in label


def test_graphviz_draws_it(net):
    if shutil.which("dot") is None:
        pytest.skip("needs Graphviz")
    assert sngd.graph(net).svg().rstrip().endswith("</svg>")


def test_without_graphviz_it_says_what_to_do(net, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SngdError, match="install it"):
        sngd.graph(net).svg()


def test_records_of_the_passes_follow_each_other(net):
    records = sngd.passes(net)
    assert [record.name for record in records] == 2 * ["reparameterise_", "observe_", "associate_"]
    for name in ("", NAME):
        own = [record for record in records if record.module == name]
        for earlier, later in pairwise(own):
            assert earlier.after == later.before
            assert earlier.nodes_after == later.nodes_before
        assert own[-1].after == str(sngd.graph(net, name)).partition("\n")[2]
        assert all(record.seconds >= 0 for record in own)
    assert "Conv1d" not in str(records)
    assert len(str(records).splitlines()) == 4
    changed = [record for record in records if record.before != record.after]
    assert records.differences().count("\n\n") == len(changed) - 1


def test_passes_of_a_model_are_those_of_its_network():
    model = Twice()
    of_model = sngd.passes(model)
    of_network = sngd.passes(sngd.reconstruct(model))
    assert [record.after for record in of_model] == [record.after for record in of_network]
    with pytest.raises(ModelError, match=r"torch\.nn\.Module"):
        sngd.passes(3)


def test_a_compiled_model_is_no_network_of_graphs():
    model = torch.compile(nn.Linear(3, 2), backend="sngd")
    model(torch.randn(4, 3)).sum().backward()
    with pytest.raises(ModelError, match=r"graphs of Dynamo.*sngd\.explain"):
        sngd.graph(model)
