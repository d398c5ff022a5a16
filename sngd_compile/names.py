"""Names of modules, parameters and buffers: data from outside, which is shown and never executed.

A key of `nn.ModuleDict` may come from a file or a request, and torch takes any text without a dot.
"""

from __future__ import annotations

import keyword


def shown(text: str) -> str:
    """Escape what a terminal would obey: control characters, and marks that turn the direction.

    Everything else, accents and other scripts included, stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_plain(path: str) -> bool:
    """Say whether Python reads `self.<path>` as just these attributes.

    Only ASCII: Python normalises other identifiers, and so would read another name than is written.
    """
    return path.isascii() and all(
        name.isidentifier() and not keyword.iskeyword(name) for name in path.split(".")
    )
