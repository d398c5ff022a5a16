"""The page: it holds everything, shows names as text, and can be searched and sorted."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from sngd_compile.inspection.curves import HEIGHT, MOST_POINTS, WIDTH, curve, spectrum

NASTY = "<script>alert(1)</script>&\"'\x1b[31m"


class Tags(HTMLParser):
    """Counts the tags, and collects what would be fetched."""

    def __init__(self):
        super().__init__()
        self.tags, self.fetched = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [v for name, v in attributes if name in ("src", "href", "srcset")]


def trained():
    model = nn.Sequential()
    model.add_module(NASTY, nn.Linear(3, 5))
    model.add_module("wide", nn.Linear(5, 20))
    model.add_module("last", nn.Linear(20, 2))
    net = sngd.reconstruct(model, sngd.Config(observe_every=1, refresh_every=2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    history = []
    for step in range(4):
        optimizer.zero_grad()
        net(torch.randn(9, 3)).square().sum().backward()
        history.append((step, sngd.metrics(net)))
        optimizer.step()
    return net, history


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    net, history = trained()
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert sngd.explain(net).to_html(path, history) == path
    return path


def test_it_holds_everything_and_fetches_nothing(page):
    text = page.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.fetched == []
    assert tags.tags.count("script") == 1
    assert "\x1b" not in text
    assert html.escape("<script>alert(1)</script>") in text
    assert tags.tags.count("details") == 1  # three linear layers, rewritten alike
    # Three spectra, and the curves of a whole network.
    assert tags.tags.count("polyline") == 3 + 5


def test_what_is_not_known_is_said(page, tmp_path):
    planned = sngd.explain(nn.Linear(3, 2)).to_html(tmp_path / "page.html").read_text()
    assert planned.count(">unknown<") == 2
    assert 'class="bar"' not in planned
    net = sngd.reconstruct(nn.Embedding(5, 3), sngd.Config(observe_every=1))
    net(torch.arange(4)).sum().backward()
    table = sngd.explain(net).to_html(tmp_path / "page.html").read_text()
    assert ">0: a table<" in table
    assert ">nothing to compare<" in table
    shares = re.findall(r'<span style="width: ([\d.]+)%', page.read_text(encoding="utf-8"))
    assert len(shares) == 3
    assert all(0 < float(share) < 100 for share in shares)


def test_modules_that_are_rewritten_alike_share_a_block(tmp_path):
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(40)))
    text = sngd.explain(layers).to_html(tmp_path / "page.html").read_text()
    assert text.count("<details>") == 1
    assert "0 and 39 more" in text


def test_the_page_of_a_large_model_is_small(tmp_path):
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        config = transformers.LlamaConfig(num_hidden_layers=32)
        model = transformers.LlamaForCausalLM(config)
    page = sngd.explain(model).to_html(tmp_path / "page.html")
    assert page.stat().st_size < 2**20


def test_a_curve_fills_its_picture():
    found = curve([(0, 5.0), (1, float("nan")), (2, 1.0), (4, 3.0)], level=3.0)
    points = [tuple(map(float, point.split(","))) for point in found.points.split()]
    assert points == [(0, 0), (WIDTH / 2, HEIGHT), (WIDTH, HEIGHT / 2)]
    assert (found.lowest, found.highest, found.level) == (1.0, 5.0, HEIGHT / 2)
    for number in (1, 2, MOST_POINTS, MOST_POINTS + 1, 10 * MOST_POINTS + 3):
        many = curve([(i, 1.0 + i) for i in range(number)])
        assert len(many.points.split()) <= MOST_POINTS
        assert (many.first, many.last, many.highest) == (0, number - 1, number)
    assert curve([]).points
    assert curve([(1, float("inf"))]).points


def test_a_spectrum_has_the_eigenvalues():
    metric = torch.diag(torch.tensor([4.0, 1.0, 2.0])).double()
    found = spectrum(metric.expand(2, 3, 3), 0.5)
    assert (found.lowest, found.highest) == pytest.approx((0.5, 4.0))
    heights = [float(point.split(",")[1]) for point in found.points.split()]
    assert heights == pytest.approx([0, HEIGHT / 3, 2 * HEIGHT / 3], abs=0.06)


READER = """
const errors = [], names = () => [...document.querySelectorAll("#sites tbody tr")]
  .filter(row => row.offsetParent).map(row => row.cells[0].textContent);
window.onerror = text => errors.push(text);
const type = text => { search.value = text; search.dispatchEvent(new Event("input")); };
const search = document.getElementById("search"), seen = { all: names() };
type("LINEAR wid");
seen.found = names();
seen.count = document.getElementById("count").textContent;
type(" ");
seen.again = names();
const sort = column => document.querySelectorAll("#sites th button")[column].click();
const keys = column => [...document.querySelectorAll("#sites tbody tr")]
  .map(row => row.cells[column].dataset.key);
sort(4); seen.up = keys(4); sort(4); seen.down = keys(4);
sort(8); seen.ratios = keys(8);
sort(0); seen.names = keys(0); seen.sort = document.querySelector("#sites th").ariaSort;
document.querySelector("summary").click();
seen.graph = document.querySelector("details[open]").innerText;
const paper = () => getComputedStyle(document.body).backgroundColor, before = paper();
document.getElementById("theme").click();
seen.papers = [before, paper()];
seen.errors = errors;
document.body.innerHTML = "<pre id=seen></pre>";
document.getElementById("seen").textContent = JSON.stringify(seen);
"""


@pytest.mark.slow
def test_a_reader_searches_sorts_and_opens(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    read = tmp_path / "read.html"
    # In a block of its own, so that names of the page's script are not declared twice.
    script = f"<script>{{{READER}}}</script>\n</body>"
    read.write_text(page.read_text().replace("</body>", script))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command = [browser, *options, "--dump-dom", read.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    seen = json.loads(html.unescape(re.search(r"<pre id=\"seen\">(.*)</pre>", done.stdout)[1]))
    first, wide, last = seen["all"]
    assert (wide, last) == ("wide.weight", "last.weight")
    assert NASTY[:20] in first
    assert seen["found"] == [wide]
    assert seen["count"] == "1 of 3"
    assert seen["again"] == seen["all"]
    assert seen["up"] == sorted(seen["up"], key=float)
    assert seen["down"] == seen["up"][::-1]
    assert len(set(seen["up"])) == 3
    assert seen["ratios"] == sorted(seen["ratios"], key=float)
    assert seen["names"][1:] == [last, wide]
    assert seen["sort"] == "ascending"
    assert "local_linear" in seen["graph"]
    assert seen["papers"][0] != seen["papers"][1]
    assert seen["errors"] == []
