"""What a release says of itself beside pyproject.toml agrees with it."""

import ast
import tomllib
from pathlib import Path

import pytest

import sngd_compile

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_is_of_this_version():
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    assert [author["name"] for author in cited["authors"]] == [
        author["name"] for author in PROJECT["authors"]
    ]
    assert cited["abstract"].strip().rstrip(".") == PROJECT["description"]
    assert cited["keywords"] == PROJECT["keywords"]


def test_the_version_is_written_in_one_place():
    sources = [p for top in ("sngd_compile", "kernels") for p in (ROOT / top).rglob("*.py")]
    assert [p.name for p in sources if f'"{PROJECT["version"]}"' in p.read_text()] == []


def test_weaknesses_are_reported_to_no_person():
    text = (ROOT / "SECURITY.md").read_text()
    assert "issue tracker" in text
    assert "@" not in text


def test_the_users_file_has_every_public_name():
    tree = ast.parse((ROOT / "tests/release/public_api.py").read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert set(sngd_compile.__all__) - used == set()
