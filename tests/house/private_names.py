"""Part of `make lint`: private names of torch in one module, and executed text in one.

Run as `private_names.py [folder ...]`; prints `file:line: what is wrong` and fails. Torch may
change its private names with any release, so all are found in `sngd_compile/torch_private.py`; and
whoever asks what this library executes reads `sngd_compile/modules/program.py`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PRIVATE = "sngd_compile/torch_private.py"
EXECUTES = "sngd_compile/modules/program.py"
FOLDERS = ("sngd_compile", "kernels")

BUILTINS = ("exec", "eval", "compile", "__import__")
OWN = ("self", "cls", "super()")
"""Whose private names a class may use: its own, and those that it overrides."""

ALLOWED = ("_parameters", "_modules", "_buffers", "sys._getframe")
"""Everybody reads these dictionaries of a module, see torch_private; `_getframe` is documented."""


def is_private(name: str) -> bool:
    """Say whether a name has one underscore in front."""
    return bool(re.fullmatch(r"_[A-Za-z]\w*", name)) and name not in ALLOWED


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of each private name that is not a file's own."""
    texts = {part for node in ast.walk(tree) for part in _of_f_string(node)} | _docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            text = ast.unparse(node)
            if ast.unparse(node.value) not in OWN and text not in ALLOWED:
                yield node.lineno, text
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            paths = [module, *(alias.name for alias in node.names)]
            if any(is_private(part) for path in paths for part in path.split(".")):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Constant) and node not in texts and _names_private(node.value):
            yield node.lineno, repr(node.value)


def executions(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and name of each builtin that turns text into code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in BUILTINS:
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and node.attr in BUILTINS:
            if ast.unparse(node.value) in ("builtins", "__builtins__"):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.module == "builtins":
            yield node.lineno, ast.unparse(node)


def _names_private(text: object) -> bool:
    return isinstance(text, str) and (
        is_private(text) or re.search(r"\btorch(\.\w+)*\._", text) is not None
    )


def _of_f_string(node: ast.AST) -> list[ast.AST]:
    return list(node.values) if isinstance(node, ast.JoinedStr) else []


def _docstrings(tree: ast.Module) -> set[ast.AST]:
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def problems(root: Path, folders: tuple[str, ...] = FOLDERS) -> list[str]:
    """List what is wrong in the Python files of a repository."""
    found = []
    for path in sorted(file for folder in folders for file in (root / folder).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        tree = ast.parse(path.read_text())
        if name != PRIVATE:
            for line, text in private_names(tree):
                found.append(f"{name}:{line}: {text} is a private name: it belongs in {PRIVATE}")
        if name != EXECUTES:
            for line, text in executions(tree):
                found.append(f"{name}:{line}: {text} turns text into code: only {EXECUTES} may")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(problems(Path(__file__).parents[2])) or None)
