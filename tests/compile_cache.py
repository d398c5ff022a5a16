"""A folder for compiled code that no other process writes to.

By default inductor and Triton write below the user's temporary folder, where a process that was
killed leaves files half written, and whoever reads them fails. A run of the tests, of the planted
bugs or of the docs claims a folder of its own here, and what it starts inherits it.

The folder is kept between runs, because compiling everything anew takes minutes, and it is in the
checkout, so that `make clean` removes it. It is named after user and version of torch: another
version cannot use what is in it. A run that did not end well leaves its mark, and the next one
starts with an empty folder. While a run holds the folder, one beside it gets a temporary one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

BUILD = Path(__file__).parents[1] / "build"


@contextmanager
def own_compile_cache(build: Path = BUILD) -> Iterator[Path]:
    """Let this process and its children keep compiled code in a folder that is theirs alone.

    Args:
        build: Where the folders are that are kept.

    Yields:
        The folder. Where `TORCHINDUCTOR_CACHE_DIR` is set, by the user or by a process that has
        claimed a folder and started this one, it is that.

    A block that raises leaves the mark of a run that did not end well.
    """
    variables = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    inherited = os.environ.get(variables[0])
    if inherited:  # chosen by the user, or claimed by the process that started this one
        yield Path(inherited)
        return
    kept = build / f"compiled-torch-{version('torch')}-user-{os.getuid()}"
    kept.mkdir(parents=True, exist_ok=True)
    with (kept / "lock").open("w") as lock, tempfile.TemporaryDirectory() as temporary:
        running, code = kept / "running", kept / "code"
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however
        except BlockingIOError:
            running = code = Path(temporary)
        else:
            if running.exists():
                shutil.rmtree(code, ignore_errors=True)
            running.touch()
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(zip(variables, (str(code), str(code / "triton")), strict=True))
        try:
            yield code
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
        if code != running:
            running.unlink()
