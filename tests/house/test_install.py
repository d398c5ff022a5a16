"""Wheel, source distribution and editable install: both packages, and no top-level `kernels`."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NOT_COPIED = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
# Without pip's own configuration and index: nothing may be fetched.
OFFLINE = {**os.environ, "PIP_NO_INDEX": "1", "PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "ignore"}

IMPORT_BOTH = """
import importlib.util, pathlib, sys, sngd_compile, sngd_kernels
assert not {"jinja2", "rich"} & set(sys.modules), "an import pays for reports that nobody asked for"
assert importlib.util.find_spec("kernels") is None, "kernels is importable"
for package in (sngd_compile, sngd_kernels):
    assert pathlib.Path(package.__file__).with_name("py.typed").exists(), package
    print(pathlib.Path(package.__file__).parent)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command offline and returns what it printed; its errors are the test's message."""
    done = subprocess.run(command, cwd=cwd, env=OFFLINE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository: a build must not leave files in it, nor find old ones there."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("copy") / "source", ignore=NOT_COPIED)


@pytest.fixture(scope="module")
def distributions(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("distributions")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder)
    return folder


@pytest.fixture
def fresh_python(tmp_path: Path) -> Path:
    """An environment without sngd_compile that borrows torch and pip from the running one."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    # A folder named in a .pth file is searched, but its own .pth files are not run: the
    # editable install of the running environment stays out of sight.
    Path(own.strip(), "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return python


def install(python: Path, *what: str | Path, cwd: Path) -> list[Path]:
    """Installs offline and returns the folders from which both packages are then imported."""
    options = ("--no-deps", "--no-build-isolation", "--ignore-installed")
    run(python, "-m", "pip", "install", *options, *what, cwd=cwd)
    return [Path(line) for line in run(python, "-c", IMPORT_BOTH, cwd=cwd).splitlines()]


@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"], ids=["wheel", "sdist"])
def test_built_distribution_installs(
    pattern: str, distributions: Path, fresh_python: Path, tmp_path: Path
):
    (distribution,) = distributions.glob(pattern)
    imported = install(fresh_python, distribution, cwd=tmp_path)
    assert [folder.name for folder in imported] == ["sngd_compile", "sngd_kernels"]
    assert all(folder.is_relative_to(tmp_path) for folder in imported)


def test_editable_install(source: Path, fresh_python: Path, tmp_path: Path):
    imported = install(fresh_python, "--editable", source, cwd=tmp_path)
    assert imported == [source / "sngd_compile", source / "kernels"]
