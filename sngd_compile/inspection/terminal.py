"""The report as tables of a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sngd_compile.errors import shown
from sngd_compile.plan.report import Block


def tables(blocks: Sequence[Block]) -> RenderableType:
    """Return the parts of a report, one under the other."""
    parts: list[RenderableType] = []
    for block in blocks:
        parts.append(Text(block.text))
        if block.rows:
            parts.append(_table(block.rows))
    return Group(*parts)


def _table(rows: Sequence[Sequence[str]]) -> Table:
    table = Table(header_style="bold")
    for index, name in enumerate(rows[0]):
        is_number = rows[0][0] == "weight" and index >= 4
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*(Text(shown(cell)) for cell in row))
    return table
