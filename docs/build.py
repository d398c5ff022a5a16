"""Builds the documentation: runs every page, checks what is generated, makes the site of it.

Files that a page asks its reader to write are added to a copy of the project and tested there.

make docs                  # fails with page and line where something no longer holds
make docs ARGS=--write     # writes printed outputs and generated pages anew
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
from layer_picture import layer_picture
from notebook import notebook_problem
from pages import PageError, blocks, check_page, run_page
from pasted import check_files
from reference import reference
from rules_page import rules_page
from website import build_site

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {"docs/api.md": reference, "docs/rules.md": rules_page, "docs/layer.svg": layer_picture}


def pages() -> list[Path]:
    """Every page with code in it, README first, and the notebooks."""
    generated = {ROOT / name for name in GENERATED}
    found = [ROOT / "README.md", *sorted(set((ROOT / "docs").rglob("*.md")) - generated)]
    notebooks = sorted((ROOT / "docs").glob("*.ipynb"))
    return [*notebooks, *(page for page in found if any(blocks(page.read_text())))]


def build_page(path: Path, write: bool) -> str | None:
    """Run one page and test its files, in a Python of its own; return what is wrong with it."""
    sys.path.append(str(ROOT / "tests"))  # the shared laws, as in the tests
    shown = path.relative_to(ROOT).as_posix()
    if path.suffix == ".ipynb":
        return notebook_problem(path, shown, write)
    try:
        if write:
            path.write_text(run_page(path, shown))
        else:
            check_page(path, shown)
        check_files(path, shown, ROOT)
    except PageError as error:
        return str(error)
    return None


def build_generated(write: bool) -> Iterator[str]:
    """Generate what docstrings and registries say; yield which pages say something else."""
    for name, generate in GENERATED.items():
        text, path = generate(), ROOT / name
        if write:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            yield f"{name}: what it is made from has changed; run make docs ARGS=--write"


def problems(write: bool) -> Iterator[str]:
    """Build everything and yield what is wrong."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A fresh process for each page: what one page registers or seeds, no other page sees. They are
    # forked from one that has done nothing but import.
    context = get_context("forkserver")
    context.set_forkserver_preload(["sngd_compile"])
    workers = ProcessPoolExecutor(
        min(4, os.cpu_count() or 1), mp_context=context, max_tasks_per_child=1
    )
    sys.path.append(str(ROOT / "tests"))
    from compile_cache import own_compile_cache

    with own_compile_cache(), workers:
        results = [workers.submit(build_page, page, write) for page in pages()]
        yield from build_generated(write)
        yield from filter(None, (result.result() for result in results))
    yield from build_site()


def main(
    write: Annotated[bool, typer.Option(help="Write outputs and generated pages anew.")] = False,
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
