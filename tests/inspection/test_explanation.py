"""The report as data, as tables of a terminal and of a notebook."""

import io
import json
import sys

import pytest
import torch
from rich.console import Console
from torch import nn

import sngd_compile as sngd
from sngd_compile.errors import ConfigError

KEYS = {
    "name",
    "parameters",
    "shape",
    "elements",
    "rule",
    "fisher",
    "fisher_text",
    "size",
    "groups",
    "rank",
    "has_bias",
    "state_bytes",
    "step_work",
    "refresh_work",
    "rows_seen",
    "damping",
    "note",
    "rows_per_step",
    "is_at_most",
    "own_work",
    "added_by_root",
    "added_by_observation",
    "added_by_refresh",
    "added_ratio",
}


class Net(nn.Module):
    """Three layers of different costs, one parameter that is left."""

    def __init__(self):
        super().__init__()
        self.narrow = nn.Linear(3, 2)
        self.wide = nn.Linear(2, 40)
        self.deep = nn.Linear(40, 30)
        self.scale = nn.Parameter(torch.ones(30), requires_grad=False)

    def forward(self, x):
        return self.deep(self.wide(self.narrow(x)).tanh()) * self.scale


@pytest.fixture
def trained():
    net = sngd.reconstruct(Net(), sngd.Config(observe_every=1, refresh_every=1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    net(torch.randn(7, 3)).square().sum().backward()
    optimizer.step()
    return net


def test_the_data_is_that_of_the_attributes(trained):
    for model, rows in ((Net(), None), (trained, 7)):
        found = sngd.explain(model)
        data = json.loads(found.to_json())
        assert data == found.to_dict()
        assert data["schema"] == 1
        assert data["totals"]["state_bytes"] == found.state_bytes
        assert data["totals"]["observed_share"] == found.observed_share
        assert [site["name"] for site in data["sites"]] == [site.name for site in found.sites]
        assert all(site.keys() == KEYS for site in data["sites"])
        assert [site["rows_seen"] for site in data["sites"]] == [rows] * 3
        assert data["skips"] == [
            {"name": "scale", "shape": [30], "reason": "frozen (requires_grad=False)"}
        ]


def test_a_network_on_meta_has_no_numbers():
    with torch.device("meta"):
        net = sngd.reconstruct(Net())
    assert [site["rows_seen"] for site in sngd.explain(net).to_dict()["sites"]] == [None] * 3


@pytest.mark.parametrize(
    ("by", "key"), [("state", "state_bytes"), ("step", "step_work"), ("refresh", "refresh_work")]
)
def test_costs_come_highest_first(by, key):
    found = sngd.explain(Net())
    table = found.blocks(by)[0].rows
    costs = {site["name"]: site[key] for site in found.to_dict()["sites"]}
    in_order = [row[0].partition(" ")[0] for row in table[1:]]
    assert in_order == sorted(costs, key=costs.__getitem__, reverse=True)
    assert found.text(by).splitlines()[4].startswith(in_order[0])
    assert found.text("order") == str(found)


def test_another_order_is_refused():
    with pytest.raises(ConfigError, match=r"'width'.*'state'"):
        sngd.explain(Net()).text("width")


def printed(found):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(found)
    return console.export_text()


def test_a_terminal_gets_a_table_with_every_cell():
    found = sngd.explain(Net())
    text = printed(found)
    cells = [cell for block in found.blocks() for row in block.rows for cell in row]
    assert all(cell in text for cell in cells)
    assert "┃" in text


def test_markup_in_names_is_text():
    model = nn.Sequential()
    model.add_module("[red]<script>", nn.Linear(2, 2))
    found = sngd.explain(model)
    assert "[red]<script>.weight" in printed(found)
    assert "<script>" not in found._repr_html_()
    assert "[red]&lt;script&gt;.weight" in found._repr_html_()


def test_a_notebook_gets_every_cell():
    found = sngd.explain(Net())
    html = found._repr_html_()
    rows = sum(len(block.rows) for block in found.blocks())
    assert html.count("<tr>") == rows


def test_pandas_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pandas"):
        sngd.explain(Net()).to_pandas()
