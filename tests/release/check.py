"""`make release-check`: both distributions as a user gets them, each check with its seconds.

They are looked at with the tools of requirements-release.txt; the wheel is installed, with what it
depends on, into an empty environment.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE, BUILT = Path(__file__).parent, ROOT / "build/release"
TOOLS, USER, FOLDER = BUILT / "tools/bin", BUILT / "user/bin", BUILT / "folder"
CONSTRAINTS = ("--constraint", str(ROOT / "constraints.txt"))

LOOP = """
from torch import nn
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
loader = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(4)]
"""
"""What the README's first example takes as given."""


def run(*command: str | Path, cwd: Path = FOLDER) -> None:
    """Run a command, as a user would who knows nothing of the repository; raise where it fails."""
    known = ("PYTHONPATH", "PYTHONSAFEPATH", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in known}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment | {"PYTHONWARNINGS": ""},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")


def install(environment: Path, *what: str | Path, anew: bool) -> None:
    """Make an environment, empty where it is made anew, and install into it."""
    run(sys.executable, "-m", "venv", *(["--clear"] if anew else []), environment)
    run(environment / "bin/python", "-m", "pip", "install", "--quiet", *what)


def of_user(path: Path) -> None:
    """Run a file in the environment of the user, with warnings as errors."""
    no_numpy = "ignore:Failed to initialize NumPy:UserWarning"  # torch says so, and goes on without
    run(USER / "python", "-W", "error", "-W", no_numpy, path)


def build() -> None:
    """Build the source distribution, and the wheel from that: of a copy, which no build has met."""
    for old in (BUILT / "dist", BUILT / "source"):
        shutil.rmtree(old, ignore_errors=True)
    built = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    source = shutil.copytree(ROOT, BUILT / "source", ignore=built)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", BUILT / "dist", source)


def the(pattern: str) -> Path:
    """Return the one distribution of this name."""
    (found,) = (BUILT / "dist").glob(pattern)
    return found


def contents() -> None:
    """Look for what does not belong into the wheel, or is missing: it has two packages (W009)."""
    two = ("--toplevel", "sngd_compile,sngd_kernels", "--ignore", "W009")
    run(TOOLS / "check-wheel-contents", *two, the("*.whl"))


def examples() -> None:
    """Run the Python of the README, as it stands, in one file."""
    markdown = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```python[^\n]*\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE)
    assert "sngd.fold" in blocks[0], "the first example of the README is not the loop"
    head, loop = blocks[0].split("\n\n", 1)
    path = FOLDER / "readme.py"
    path.write_text("\n".join([head, LOOP, loop, *blocks[1:]]))
    of_user(path)


def mypy() -> None:
    """Check the user's file with mypy, as strict as it gets, without a configuration."""
    options = ("--strict", "--config-file=", "--python-executable", USER / "python")
    run(TOOLS / "mypy", *options, HERE / "public_api.py")


CHECKS: dict[str, Callable[[], None]] = {
    "build": build,
    "tools": lambda: install(
        BUILT / "tools", "--requirement", ROOT / "requirements-release.txt", anew=False
    ),
    "twine check": lambda: run(TOOLS / "twine", "check", "--strict", the("*.whl"), the("*.tar.gz")),
    "check-wheel-contents": contents,
    "an empty environment": lambda: install(BUILT / "user", *CONSTRAINTS, the("*.whl"), anew=True),
    "pip check": lambda: run(USER / "python", "-m", "pip", "check"),
    "mypy --strict": mypy,
    "pyright": lambda: run(
        TOOLS / "pyright", "--pythonpath", USER / "python", HERE / "public_api.py"
    ),
    "public API": lambda: of_user(HERE / "public_api.py"),
    "README": examples,
    "sngd-compile doctor": lambda: run(USER / "sngd-compile", "doctor"),
    "backend by name": lambda: of_user(HERE / "by_name.py"),
}


def main() -> None:
    """Make each check, one after the other."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, check in CHECKS.items():
        start = time.perf_counter()
        check()
        print(f"ok  {name}, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
