"""A file or a function that no longer fits on a few screens is two of them."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("sngd_compile", "kernels", "examples", "benchmarks", "docs", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
SOURCES = [path for path in FILES if path.relative_to(ROOT).parts[0] != "tests"]

LONGEST_FILE = 400
LONGEST_FUNCTION = 40
MOST_MODULES = 20


def name(path: Path) -> str:
    """The path as it is written in the repository."""
    return path.relative_to(ROOT).as_posix()


def test_files_are_short():
    lengths = {name(path): len(path.read_text().splitlines()) for path in FILES}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines from `def` to the end, the docstring left out: documentation is never too much.

    A Triton kernel names every pointer, size and stride: its parameters are left out as well.
    """
    first = function.body[0]
    decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
    start = first.lineno if "triton.jit" in decorators else function.lineno
    length = (function.end_lineno or 0) - start + 1
    documented = ast.get_docstring(function, clean=False) is not None
    return length - ((first.end_lineno or 0) - first.lineno + 1 if documented else 0)


def test_functions_are_short():
    lengths = {
        f"{name(path)}:{node.name}": lines_of_code(node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {
        function: lines for function, lines in lengths.items() if lines > LONGEST_FUNCTION
    } == {}


def test_folders_hold_few_modules():
    folders = {name(path.parent): [] for path in SOURCES}
    for path in SOURCES:
        folders[name(path.parent)].append(path.name)
    counts = {folder: len(set(files) - {"__init__.py"}) for folder, files in folders.items()}
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}
