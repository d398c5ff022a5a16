"""Files that a page asks its reader to write are tested, and the build fails where they fail."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from sngd_compile.layout import Layout

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add_a_rule.md"


@pytest.fixture
def pasted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that tests a page's files, a script of the documentation's build."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("pasted")


def error_of(pasted: ModuleType, page: Path, text: str) -> str:
    """Return why a page's files are refused."""
    page.write_text(text)
    with pytest.raises(pasted.PageError) as caught:
        pasted.check_files(page, "page.md", ROOT)
    return str(caught.value)


def test_the_test_fails_where_the_rule_is_missing(pasted, tmp_path):
    text = PAGE.read_text()
    without = text.replace("```python sngd_compile/rules/", "```python no-run ")
    assert without != text
    said = error_of(pasted, tmp_path / "page.md", without.replace("no-run conv_tbc.py", "no-run"))
    assert "1 failed" in said


def test_files_that_are_too_long_are_refused(pasted, tmp_path):
    text = "```python tests/rules/test_new.py\n" + "x = 1\n" * 61 + "```\n"
    assert "61 lines together, at most 60" in error_of(pasted, tmp_path / "page.md", text)


def test_a_file_that_is_there_already_is_refused(pasted, tmp_path):
    text = "```python sngd_compile/rules/linear.py\nx = 1\n```\n"
    assert "part of the project already" in error_of(pasted, tmp_path / "page.md", text)


def test_the_page_explains_every_form_of_a_layout():
    forms = [name for name, member in vars(Layout).items() if isinstance(member, classmethod)]
    text = PAGE.read_text()
    assert [name for name in forms if f"Layout.{name}(" not in text] == []
