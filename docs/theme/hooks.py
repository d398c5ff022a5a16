"""What a plain viewer shows of a page, the site shows; and what a search finds first."""

from __future__ import annotations

import logging
import re
from collections import Counter
from typing import Any

from markdown_it import MarkdownIt

log = logging.getLogger("mkdocs.hooks")
COUNTED = re.compile(r"<(h[1-6]|table|tr|td|pre|code|ul|ol|li|img|a|em|strong|blockquote)\b")
VIEWER = MarkdownIt().enable("table")


def tags(html: str) -> Counter[str]:
    """Count the tags that a reader sees; permanent links at headings are of the site alone."""
    return Counter(COUNTED.findall(re.sub(r'<a class="headerlink".*?</a>', "", html)))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> None:
    """Let a search find how it is before it finds how that was decided or measured."""
    if page.file.src_path.startswith(("docs/decisions/", "benchmarks/", "CHANGELOG")):
        page.meta["search"] = {"boost": 0.3}


def on_page_content(html: str, page: Any, **_: Any) -> None:
    """Warn, which is an error in a strict build, where mkdocs reads a page in another way."""
    expected, found = tags(VIEWER.render(page.markdown)), tags(html)
    different = {tag for tag in expected | found if expected[tag] != found[tag]}
    if different:
        shown = ", ".join(f"{expected[tag]} {tag}, here {found[tag]}" for tag in sorted(different))
        log.warning("%s: a viewer of Markdown shows %s", page.file.src_path, shown)
