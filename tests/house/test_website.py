"""The site has every page, the generated pages have every name, and what is wrong is said."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

import sngd_compile
from sngd_compile.rules import RULES

pytest.importorskip("nbformat", reason="the documentation is built with the extra docs")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MACHINE = re.compile(r"(?<![\w.])/(?:work|home|root|tmp|opt|usr/lib)/\w|localhost|file://")
"""What only the machine of whoever built the documentation has."""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a script of the documentation's build by its name."""
    monkeypatch.syspath_prepend(DOCS)
    monkeypatch.syspath_prepend(DOCS / "theme")
    return importlib.import_module


def test_every_page_is_in_the_navigation_once(script):
    website = script("website")
    files, problems = website.linked_files()
    assert problems == []
    pages = [path.with_suffix(".md") for path in files if path.suffix in website.PAGES_END]
    navigation = (DOCS / "theme" / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"- (?:[^:\n]+: )?(\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(page.as_posix() for page in pages)


def test_the_rules_page_has_every_rule():
    own = [name for name, rule in RULES.items() if type(rule).__module__.startswith("sngd_compile")]
    assert len(own) > 20
    headings = re.findall(r"^### (.+)$", (DOCS / "rules.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(own)


def test_the_api_page_has_every_public_name():
    headings = re.findall(r"^### (.+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert set(sngd_compile.__all__) <= set(headings)


def test_a_link_that_leads_nowhere_is_found_with_its_line(script, tmp_path):
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "setup.cfg").touch()
    (tmp_path / "README.md").write_text("# A\n\n[b](docs/b.md#x) and [c](docs/gone.md)\n")
    (tmp_path / "docs" / "b.md").write_text(
        "[up](../README.md), [source](../setup.cfg), [far](https://example.org), [here](#x)\n\n"
        "```text\n[no link](nowhere.md)\n```\n\n![p](p.png)\n\n[folder](deep) [out](../../etc)\n"
    )
    files, problems = script("website").linked_files(tmp_path)
    assert {path.as_posix() for path in files} == {"README.md", "docs/b.md", "setup.cfg"}
    assert problems == [
        "docs/b.md:7: p.png is no file of the repository",
        "docs/b.md:9: deep is no file of the repository",
        "docs/b.md:9: ../../etc is no file of the repository",
        "README.md:3: docs/gone.md is no file of the repository",
    ]


def test_fences_and_links_to_notebooks_are_put_into_the_dialect_of_the_site(script):
    text = (
        "```python no-run\nx\n```\n\n```python tests/a.py\ny\n```\n\n    ```python no-run\n\n"
        "[t](t.ipynb), [u](docs/t.ipynb#fold), [far](https://example.org/t.ipynb)\n"
    )
    assert script("website").for_site(text) == (
        '```python\nx\n```\n\n```python title="tests/a.py"\ny\n```\n\n    ```python no-run\n\n'
        "[t](t.md), [u](docs/t.md#fold), [far](https://example.org/t.ipynb)\n"
    )


@pytest.mark.parametrize(
    ("html", "is_fetched"),
    [
        ('<script src="https://example.org/a.js">', True),
        ('<link rel="stylesheet" href="//example.org/a.css">', True),
        ("<img alt='' src=http://example.org/a.png>", True),
        ("@font-face { src: url('https://example.org/a.woff2') }", True),
        ('@import "https://example.org/a.css";', True),
        ('<a href="https://example.org">', False),
        ('<link rel="canonical" href="https://example.org">', False),
        ('<script src="assets/a.js">', False),
        ("url(data:image/svg+xml;charset=utf-8,<svg xmlns='http://www.w3.org/2000/svg'/>)", False),
    ],
)
def test_what_a_browser_would_fetch_from_elsewhere_is_found(script, tmp_path, html, is_fetched):
    (tmp_path / "a.html").write_text(html)
    assert bool(script("website").fetched(tmp_path)) == is_fetched


def test_a_page_that_the_site_would_show_in_another_way_is_found(script):
    tags = script("hooks").tags
    nested = "<ul><li>a<ul><li>b</li></ul></li></ul>"
    assert tags(nested) != tags("<ul><li>a\n- b</li></ul>")
    assert tags('<h2>a<a class="headerlink" href="#a">x</a></h2>') == tags("<h2>a</h2>")


def test_pages_and_notebooks_hold_nothing_of_the_machine_that_made_them(script):
    website = script("website")
    pages = [path for path in website.linked_files()[0] if path.suffix in (".md", ".ipynb", ".svg")]
    assert len(pages) > 50
    found = {path.as_posix(): MACHINE.findall((ROOT / path).read_text()) for path in pages}
    assert {path: what for path, what in found.items() if what} == {}


def test_the_notebook_holds_the_outputs_of_one_run_from_top_to_bottom(script):
    book = script("nbformat").read(DOCS / "tutorial.ipynb", as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert kinds == {"stream", "display_data", "execute_result"}


def test_the_picture_of_a_layer_shows_the_graphs_of_the_network(script):
    picture = script("layer_picture")
    captured, *_, last = picture.graphs_of(nn.Linear(6, 4))
    graphs = sngd_compile.graph(sngd_compile.reconstruct(nn.Linear(6, 4)))
    assert captured == picture.drawn(graphs.before[""])
    assert last == picture.drawn(graphs[""])
    drawn = (DOCS / "layer.svg").read_text()
    assert [name for name in [*captured, *last] if f">{name}<" not in drawn] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import warnings\nwarnings.warn('odd')", "cell 0 warns: .*odd"),
        ("print('new')", "cell 0: shown  ''\nprinted 'new"),
        ("x = 1", None),
    ],
)
def test_a_cell_that_raises_warns_or_prints_otherwise_fails(script, tmp_path, source, said):
    nbformat = script("nbformat")
    path = tmp_path / "book.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    problem = script("notebook").notebook_problem(path, "book.ipynb", write=False)
    if said is None:
        assert problem is None
    else:
        assert re.search(f"book.ipynb: .*{said}", problem, re.DOTALL)
