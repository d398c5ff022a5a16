"""What import-linter does not see: imports of other projects, and imports inside functions."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))
SOURCES = sorted([*(ROOT / "sngd_compile").rglob("*.py"), *KERNELS])


def name(path: Path) -> str:
    """The path as it is written in the repository."""
    return path.relative_to(ROOT).as_posix()


def imported_projects(tree: ast.AST) -> Iterator[str]:
    """The top-level names of absolute imports anywhere in a tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", KERNELS, ids=name)
def test_kernels_import_torch_and_triton_only(path: Path):
    others = set(imported_projects(ast.parse(path.read_text()))) - sys.stdlib_module_names
    assert others <= {"sngd_kernels", "torch", "triton"}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_import_inside_a_function_except_triton(path: Path):
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    inside = {project for function in functions for project in imported_projects(function)}
    assert inside <= {"triton"}
