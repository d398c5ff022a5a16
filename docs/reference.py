"""`docs/api.md`: signatures as they are written in the source, and docstrings as Markdown."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import sngd_compile
import sngd_kernels
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.inspection.explanation import Explanation
from sngd_compile.inspection.graphs import Graphs
from sngd_compile.inspection.pass_records import PassRecord, PassRecords
from sngd_compile.layout import Layout
from sngd_compile.rules import Call, Use

TITLE = """\
# API

Generated from the docstrings by `make docs ARGS=--write`. A trailing `_` in a name means that the
function changes its argument. Symbols: [method.md](method.md).
"""
RECORDS: tuple[Any, ...] = (
    Explanation,
    FisherLayer,
    Layout,
    Graphs,
    PassRecord,
    PassRecords,
    Call,
    Use,
)
"""What the public functions return, and what a rule gets and gives."""

SECTIONS = ("Args", "Attributes", "Returns", "Raises")


def reference() -> str:
    """Return the whole page."""
    parts = [TITLE]
    for module in (sngd_compile, sngd_kernels):
        parts.append(f"## {module.__name__}\n\n{_prose(inspect.getdoc(module) or '')}\n")
        names = sorted(module.__all__, key=_kind_of(module))
        parts += [entry(getattr(module, name), name) for name in names]
    parts.append("## What is returned, and what a rule handles\n")
    parts += [entry(record, record.__name__) for record in RECORDS]
    return "\n".join(parts)


def entry(public: Any, name: str) -> str:
    """Return the heading, the signature, the docstring and the methods of one public name."""
    heading = f"### {name}\n\n"
    if inspect.isclass(public):
        methods = "".join(f"\n{text}" for text in _methods(public))
        return f"{heading}{_code(_class_header(public))}\n{docstring(public)}\n{methods}"
    if inspect.isfunction(public):
        return f"{heading}{_code(_function_header(_tree(public)))}\n{docstring(public)}\n"
    alias = str(public).removeprefix("typing.").replace("'", '"')
    return heading + _code(f"{name} = {alias}")


def _kind_of(module: ModuleType) -> Any:
    """Sort functions first, then classes, then errors and warnings."""

    def key(name: str) -> tuple[int, str]:
        public = getattr(module, name)
        is_error = inspect.isclass(public) and issubclass(public, Exception)
        return (2 if is_error else not inspect.isfunction(public), name)

    return key


def _tree(public: Any) -> Any:
    source = textwrap.dedent(inspect.getsource(public))
    tree = ast.parse(source).body[0]
    tree.lines = source.splitlines()  # type: ignore[attr-defined]
    return tree


def _function_header(tree: Any, lines: list[str] | None = None) -> str:
    """Return the source from the first decorator to the colon."""
    first = min([tree, *tree.decorator_list], key=lambda node: node.lineno).lineno
    header = (lines or tree.lines)[first - 1 : tree.body[0].lineno - 1]
    return textwrap.dedent("\n".join(re.sub(r"  # noqa.*", "", line) for line in header))


def _class_header(public: type) -> str:
    """Return the class line and, of a dataclass or a base class, its annotated fields."""
    bases = [base.__name__ for base in public.__bases__ if base not in (object,)]
    header = f"class {public.__name__}({', '.join(bases)})".replace("()", "")
    fields = [node for node in _tree(public).body if isinstance(node, ast.AnnAssign)]
    lines = _tree(public).lines
    shown = [line for node in fields for line in lines[node.lineno - 1 : node.end_lineno]]
    return "\n".join([f"{header}:", *shown]) if shown else header


def _methods(public: type) -> Iterator[str]:
    tree = _tree(public)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            method = inspect.getattr_static(public, node.name)
            function = method.__func__ if isinstance(method, classmethod) else method
            header = _code(_function_header(node, tree.lines))
            yield f"#### {public.__name__}.{node.name}\n\n{header}\n{docstring(function)}\n"


def docstring(public: Any) -> str:
    """Turn a Google-style docstring into Markdown."""
    parts = []
    for paragraph in ((public.__doc__ and inspect.getdoc(public)) or "").split("\n\n"):
        title, _, rest = paragraph.partition(":\n")
        if title not in SECTIONS:
            parts.append(_prose(paragraph))
        elif title == "Returns":
            parts.append(f"**Returns** {_prose(textwrap.dedent(rest))}")
        else:
            parts.append(f"**{title}**\n\n{_items(textwrap.dedent(rest))}")
    return "\n\n".join(parts)


def _items(text: str) -> str:
    """Turn `name: what it is`, its further lines indented, into a list."""
    lines = []
    for line in text.splitlines():
        named = re.match(r"(\w+): (.*)", line)
        lines.append(f"- `{named[1]}`: {named[2]}" if named else f"  {line.strip()}")
    return _prose("\n".join(lines))


def _prose(text: str) -> str:
    """Keep brackets outside code from being read as links, and stars as emphasis."""
    pieces = re.split(r"(`[^`]*`|^ {4}.*$)", text, flags=re.MULTILINE)
    return "".join(
        piece if index % 2 else re.sub(r"([\[\]*<>])", r"\\\1", piece)
        for index, piece in enumerate(pieces)
    )


def _code(source: str) -> str:
    return f"```python no-run\n{source}\n```\n"
