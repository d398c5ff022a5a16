"""Markdown pages whose Python runs and whose printed output is what was really printed.

```python              runs, in one module per page, with warnings as errors
```python a/file.py    runs too, and is a file that the reader writes; see pasted.py
```python no-run       is shown only
<!-- output -->        before a ```text block: what the page has printed since the last one
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import traceback
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

OUTPUT_MARK = "<!-- output -->"


class PageError(Exception):
    """A page does not hold; the text begins with its path and line."""


@dataclass(frozen=True)
class Block:
    """One fenced block: code to run, or output to compare.

    Attributes:
        kind: "code" or "output".
        line: Of the page, counted from 1, where the content begins.
        text: The content, each line ended by a newline.
        file: Where the reader writes it, from the project's root; None for code of the page alone.
    """

    kind: str
    line: int
    text: str
    file: str | None = None


def blocks(markdown: str) -> Iterator[Block]:
    """Yield what runs and what is compared, in the order of the page."""
    marked = False
    for token in MarkdownIt().parse(markdown):
        if token.type == "fence" and token.map:
            line = token.map[0] + 2
            language, _, word = token.info.strip().partition(" ")
            if language == "python" and word != "no-run":
                yield Block("code", line, token.content, word or None)
            elif marked:
                yield Block("output", line, token.content)
        marked = token.type == "html_block" and token.content.strip() == OUTPUT_MARK


def run_page(path: Path, shown: str | None = None) -> str:
    """Run a page and return it with its output blocks as they were really printed.

    Args:
        path: The page.
        shown: Its name in messages and tracebacks; the path if None.

    Raises:
        PageError: A block raised or warned, or printed what no output block shows.
    """
    shown = shown or str(path)
    markdown = path.read_text()
    found = list(blocks(markdown))
    with _surroundings():
        outputs = _run(found, shown)
    lines = markdown.splitlines(keepends=True)
    for block in reversed([block for block in found if block.kind == "output"]):
        start = block.line - 1
        lines[start : start + block.text.count("\n")] = [outputs[block]]
    return "".join(lines)


def check_page(path: Path, shown: str | None = None) -> None:
    """Run a page and compare its outputs with those that it shows.

    Raises:
        PageError: As `run_page`, or an output differs.
    """
    expected = path.read_text().splitlines()
    actual = run_page(path, shown).splitlines()
    for number, (old, new) in enumerate(zip(expected, actual, strict=False), start=1):
        if old != new:
            raise PageError(f"{shown or path}:{number}: shown  {old!r}\nprinted {new!r}")
    if len(expected) != len(actual):
        raise PageError(f"{shown or path}: {len(expected)} lines, expected {len(actual)}")


def _run(found: list[Block], shown: str) -> dict[Block, str]:
    module = types.ModuleType("page")
    sys.modules["page"] = module  # pickle looks classes up by it
    outputs: dict[Block, str] = {}
    printed, line = io.StringIO(), 0
    for block in found:
        if block.kind == "code":
            line = block.line
            with contextlib.redirect_stdout(printed):
                _execute(block, module, shown)
            continue
        outputs[block] = _stripped(printed.getvalue())
        printed = io.StringIO()
    if printed.getvalue():
        raise PageError(f"{shown}:{line}: prints, but no {OUTPUT_MARK} block follows")
    return outputs


def _execute(block: Block, module: types.ModuleType, shown: str) -> None:
    """Run one block; its lines are numbered as in the page."""
    try:
        code = compile("\n" * (block.line - 1) + block.text, shown, "exec")
        exec(code, module.__dict__)
    except SyntaxError as error:
        raise PageError(f"{shown}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next(frame.lineno for frame in reversed(frames) if frame.filename == shown)
        raise PageError(f"{shown}:{line}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    """Stand in an empty folder, with warnings as errors."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _stripped(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.strip("\n").splitlines())
