"""The site: every page, and every file that one links to, laid out as in the repository.

A link from page to page, or to a source, therefore leads to the same file on the site as in a plain
viewer. mkdocs then builds build/site, with warnings as errors; the site fetches nothing.

make site                  # build/site/index.html; make docs runs every page as well
python -m http.server --directory build/site     # a browser searches pages of a server only
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from notebook import as_markdown

ROOT = Path(__file__).resolve().parents[1]
THEME = ROOT / "docs" / "theme"
PAGES = ROOT / "build" / "pages"
SITE = ROOT / "build" / "site"
PAGES_END = (".md", ".ipynb")
FIRST = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")

FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|object)\b[^>]*\b(?:src|data)=["']?(?:https?:)?//[^"'>\s]+"""
    r"""|<link\b(?![^>]*rel=["']?(?:canonical|next|prev))[^>]*href=["']?(?:https?:)?//[^"'>\s]+"""
    r"""|@import[^;]*//[^;]+|url\(["']?(?:https?:)?//[^)]+"""
)
"""What a browser would fetch from elsewhere to show a page."""


def targets(markdown: str) -> Iterator[tuple[int, str]]:
    """Yield the line, counted from 1, and the target of each link and picture of a page."""
    for token in MarkdownIt().parse(markdown):
        for child in token.children or ():
            target = child.attrs.get("href") or child.attrs.get("src")
            if target:
                yield (token.map or [0])[0] + 1, str(target)


def is_elsewhere(target: str) -> bool:
    """Whether a link leads to another site, or to a place on its own page."""
    return re.match(r"#|[a-z]+:", target) is not None


def page_of(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a page, or a notebook as one, and the pictures that it brings, by name."""
    return as_markdown(path) if path.suffix == ".ipynb" else (path.read_text(), {})


def linked_files(root: Path = ROOT) -> tuple[dict[Path, str], list[str]]:
    """Follow links from every page.

    Returns:
        Paths from the root, each with the page and line that first links to it, and what is wrong:
        links that lead to no file.
    """
    pages = [root / name for name in FIRST]
    pages += [path for end in PAGES_END for path in sorted((root / "docs").rglob(f"*{end}"))]
    found = {path.relative_to(root): "" for path in pages if path.exists()}
    problems, waiting = [], list(found)
    while waiting:
        page = waiting.pop()
        if page.suffix not in PAGES_END:
            continue
        text, pictures = page_of(root / page)
        for line, target in targets(text):
            if is_elsewhere(target) or target in pictures:
                continue
            path = Path(os.path.normpath(root / page.parent / unquote(target.partition("#")[0])))
            if not path.is_relative_to(root) or not path.is_file():
                problems.append(f"{page}:{line}: {target} is no file of the repository")
            elif path.relative_to(root) not in found:
                found[path.relative_to(root)] = f"{page}:{line}"
                waiting.append(path.relative_to(root))
    return found, problems


def for_site(markdown: str) -> str:
    """Return a page in the dialect of mkdocs: fences, and links to notebooks."""
    lines = markdown.splitlines(keepends=True)
    for token in MarkdownIt().parse(markdown):
        language, _, word = token.info.strip().partition(" ")
        if token.type == "fence" and token.map and word:
            title = "" if word == "no-run" else f' title="{word}"'
            start = token.map[0]
            lines[start] = lines[start].replace(token.info.strip(), language + title)
    return re.sub(r"(\]\([^):]+)\.ipynb([#)])", r"\1.md\2", "".join(lines))


def stage(files: dict[Path, str]) -> None:
    """Lay the pages and what they link to out under build/pages."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for path in files:
        place = PAGES / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in PAGES_END:
            text, pictures = page_of(ROOT / path)
            place.with_suffix(".md").write_text(for_site(text))
            for name, content in pictures.items():
                place.with_name(name).write_bytes(content)
        else:
            shutil.copyfile(ROOT / path, place)
    for path in THEME.glob("*.css"):
        shutil.copyfile(path, PAGES / path.name)


def fetched(site: Path) -> list[str]:
    """Return what a browser would fetch from elsewhere, page by page."""
    shown = [path for end in ("html", "css") for path in sorted(site.rglob(f"*.{end}"))]
    return [
        f"{path.relative_to(site)}: a browser would fetch {match[0]}"
        for path in shown
        for match in FETCHED.finditer(path.read_text())
    ]


def build_site() -> list[str]:
    """Build build/site; return what is wrong."""
    files, problems = linked_files()
    stage(files)
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict"]
    command += ["--config-file", str(THEME / "mkdocs.yml")]
    # The theme advertises its successor in every build otherwise.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if built.returncode:
        return [*problems, built.stderr.strip()]
    return [*problems, *fetched(SITE)]


if __name__ == "__main__":
    found = build_site()
    print("\n".join(found or [f"{SITE.relative_to(ROOT)}/index.html (its search needs a server)"]))
    sys.exit(bool(found))
