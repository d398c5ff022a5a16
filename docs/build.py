"""Builds the documentation: runs every page, and checks `docs/api.md` against the docstrings.

Files that a page asks its reader to write are added to a copy of the project and tested there.

make docs                  # fails with page and line where something no longer holds
make docs ARGS=--write     # writes printed outputs and docs/api.md anew
"""

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import typer
from pages import PageError, blocks, check_page, run_page
from pasted import check_files
from reference import reference

ROOT = Path(__file__).resolve().parents[1]
API = ROOT / "docs" / "api.md"


def pages() -> list[Path]:
    """Every page with code in it, README first; `docs/api.md` is generated."""
    found = [ROOT / "README.md", *sorted(set((ROOT / "docs").rglob("*.md")) - {API})]
    return [page for page in found if any(blocks(page.read_text()))]


def build_page(path: Path, write: bool) -> str | None:
    """Run one page and test its files, in a Python of its own; return what is wrong with it."""
    sys.path.append(str(ROOT / "tests"))  # the shared laws, as in the tests
    shown = path.relative_to(ROOT).as_posix()
    try:
        if write:
            path.write_text(run_page(path, shown))
        else:
            check_page(path, shown)
        check_files(path, shown, ROOT)
    except PageError as error:
        return str(error)
    return None


def build_api(write: bool) -> str | None:
    """Generate `docs/api.md`; return what is wrong with the one that is there."""
    text = reference()
    if write:
        API.write_text(text)
    elif not API.exists() or API.read_text() != text:
        return "docs/api.md: the docstrings have changed; run make docs ARGS=--write"
    return None


def problems(write: bool) -> Iterator[str]:
    """Build everything and yield what is wrong."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A fresh interpreter for each page: what one page registers or seeds, no other page sees.
    workers = ProcessPoolExecutor(
        min(4, os.cpu_count() or 1), mp_context=get_context("spawn"), max_tasks_per_child=1
    )
    sys.path.append(str(ROOT / "tests"))
    from compile_cache import own_compile_cache

    with own_compile_cache(), workers:
        results = [workers.submit(build_page, page, write) for page in pages()]
        yield from filter(None, [build_api(write), *(result.result() for result in results)])


def main(
    write: Annotated[bool, typer.Option(help="Write outputs and docs/api.md anew.")] = False,
) -> None:
    """Run every page and check what it shows."""
    start = time.perf_counter()
    found = list(problems(write))
    for problem in found:
        typer.echo(problem, err=True)
    typer.echo(f"{len(pages())} pages in {time.perf_counter() - start:.0f} s")
    raise typer.Exit(bool(found))


if __name__ == "__main__":
    typer.run(main)
