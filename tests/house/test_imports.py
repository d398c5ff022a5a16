"""What import-linter does not see: imports of other projects, and imports inside functions."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

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


def test_kernels_import_torch_and_triton_only():
    allowed = {"sngd_kernels", "torch", "triton", *sys.stdlib_module_names}
    others = {
        name(path): set(imported_projects(ast.parse(path.read_text()))) - allowed
        for path in KERNELS
    }
    assert {path: found for path, found in others.items() if found} == {}


def test_trainers_are_imported_by_their_integrations_only():
    optional = {
        "accelerate",
        "lightning",
        "peft",
        "pytorch_lightning",
        "safetensors",
        "transformers",
    }
    found = {
        name(path): set(imported_projects(ast.parse(path.read_text()))) & optional
        for path in SOURCES
    }
    assert {path for path, projects in found.items() if projects} == {
        "sngd_compile/integrations/lightning.py",
        "sngd_compile/integrations/transformers.py",
    }


def imported_inside(path: Path) -> set[str]:
    """The projects that functions of a file import when they run."""
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    return {project for function in functions for project in imported_projects(function)}


def test_no_import_inside_a_function_except_triton():
    inside = {name(path): imported_inside(path) - {"triton"} for path in SOURCES}
    assert {path: found for path, found in inside.items() if found} == {}
