"""Notebooks: run in a kernel of their own, and turned into pages."""

from __future__ import annotations

import base64
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat

SECONDS = 120
"""That a cell may take, on a machine however loaded, before it is taken to hang."""


def executed(path: Path) -> Any:
    """Run a notebook from its first cell to its last; return it with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raised; the text has the cell.
    """
    from nbclient import NotebookClient
    from traitlets.config import Config

    book = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        # The kernel's own files, and what the cells write, leave nothing behind.
        os.environ |= {"JUPYTER_RUNTIME_DIR": folder, "IPYTHONDIR": folder}
        resources = {"metadata": {"path": folder}}
        # A socket in that folder, and no open port.
        config = Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})
        client = NotebookClient(
            book, config=config, timeout=SECONDS, resources=resources, record_timing=False
        )
        client.execute()
    book.metadata.pop("language_info", None)  # the version of the Python that ran it last
    for output in (output for cell in book.cells for output in cell.get("outputs", [])):
        if "text/plain" in (data := output.get("data", {})):  # nor where an object lay
            data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", data["text/plain"])
    return book


def notebook_problem(path: Path, shown: str, write: bool) -> str | None:
    """Run a notebook; return what is wrong with it: a cell raised, warned or printed otherwise."""
    from nbclient.exceptions import CellExecutionError

    try:
        book = executed(path)
    except CellExecutionError as error:
        return f"{shown}: {error}"
    for number, cell in enumerate(book.cells):
        warned = _stream(cell, "stderr")
        if warned:
            return f"{shown}: cell {number} warns: {warned}"
    if write:
        nbformat.write(book, path)
        return None
    pairs = zip(nbformat.read(path, as_version=4).cells, book.cells, strict=True)
    for number, (old, new) in enumerate(pairs):
        if _stream(old, "stdout") != _stream(new, "stdout"):
            both = f"{_stream(old, 'stdout')!r}\nprinted {_stream(new, 'stdout')!r}"
            return f"{shown}: cell {number}: shown  {both}; make docs ARGS=--write renews it"
    return None


def as_markdown(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as a page, and the pictures beside it by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for index, output in enumerate(cell.outputs):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}_{number}_{index}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![{_alternative(cell)}]({name})")
            elif "text/html" in data:
                # A blank line would end the block of HTML.
                lines = [line for line in data["text/html"].splitlines() if line.strip()]
                parts.append("<div>\n" + "\n".join(lines) + "\n</div>")
            else:
                text = output.get("text") or data.get("text/plain", "")
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def _alternative(cell: Any) -> str:
    """What a picture shows, in words: of the cell's metadata."""
    return str(cell.metadata.get("alt", "a plot"))


def _stream(cell: Any, name: str) -> str:
    outputs = cell.get("outputs", [])
    return "".join(o.text for o in outputs if o.output_type == "stream" and o.name == name)
