"""The page of promises names tests that are there, and says of each promise which holds it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "promises.md").read_text()
PROMISED = PAGE.partition("## What is promised")[2].partition("## What is not promised")[0]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PROMISED)


def functions_of(path: Path) -> set[str]:
    """The functions of a file, those of its classes too."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def test_every_named_test_exists():
    assert len(NAMED) > 30
    missing = [f"{path}::{name}" for path, name in NAMED if name not in functions_of(ROOT / path)]
    assert missing == []


def test_every_promise_names_its_test():
    rows = [line for line in PROMISED.splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith("| promise |")]
    assert [row for row in promises if not re.search(r"`tests/[\w/]+\.py::\w+` \|$", row)] == []
