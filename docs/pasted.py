"""Files that a page asks its reader to write: written into a copy of the project, and tested there.

```python tests/rules/test_x.py      runs in the page, and is such a file
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pages import Block, PageError, blocks

MOST_LINES = 60
"""What all files of one page may have together, blank lines and docstrings included."""

COPIED = (
    "pyproject.toml",
    "sngd_compile",
    "tests/compile_cache.py",
    "tests/conftest.py",
    "tests/laws",
)


def check_files(path: Path, shown: str, project: Path) -> None:
    """Add a page's files to a copy of the project, nothing else changed, and run their tests.

    Args:
        path: The page.
        shown: Its name in messages.
        project: Root of the project, which stays as it is.

    Raises:
        PageError: The files are too long, or in the project already, or their test or their
            style fails.
    """
    files = {block.file: block for block in blocks(path.read_text()) if block.file}
    if not files:
        return
    lines = sum(block.text.count("\n") for block in files.values())
    if lines > MOST_LINES:
        where = ", ".join(files)
        raise PageError(f"{shown}: {where}: {lines} lines together, at most {MOST_LINES}")
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(project, Path(folder))
        for name, block in files.items():
            if (project / name).exists():
                line = f"{shown}:{block.line}"
                raise PageError(f"{line}: {name} is part of the project already: no file to add")
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_text(block.text)
        ask_for_success(copy, files, shown)


def copied(project: Path, folder: Path) -> Path:
    """Copy what a rule and its test need; `folder/packages` holds the package alone.

    The kernels stay those that are installed.
    """
    copy = folder / "project"
    for name in COPIED:
        source, target = project / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    # The tests take their own root off the path, so the package is found by another way.
    (folder / "packages").mkdir()
    (folder / "packages" / "sngd_compile").symlink_to(copy / "sngd_compile")
    return copy


def ask_for_success(copy: Path, files: dict[str, Block], shown: str) -> None:
    """Ask the linter and the tests; the tests find the rule only where its file lies."""
    tests = [name for name in files if name.startswith("tests/")]
    environment = os.environ | {
        "PYTHONPATH": str(copy.parent / "packages"),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
    }
    for command in (
        ["ruff", "check", "--no-cache", *files],
        ["ruff", "format", "--check", "--no-cache", *files],
        ["pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *tests],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = (done.stdout + done.stderr)[-4000:]
            raise PageError(f"{shown}: {' '.join(command)} fails on the page's files:\n{said}")
