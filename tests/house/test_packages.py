"""The packages that are installed are those that exist, and nothing is importable as `kernels`."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def import_name(folder: Path) -> str:
    """The dotted name under which a package's folder is imported."""
    top, *rest = folder.relative_to(ROOT).parts
    names = {path: name for name, path in SETUPTOOLS["package-dir"].items()}
    return ".".join([names.get(top, top), *rest])


def test_listed_packages_are_the_folders_with_an_init_file():
    inits = [
        path for top in ("sngd_compile", "kernels") for path in (ROOT / top).rglob("__init__.py")
    ]
    assert sorted(SETUPTOOLS["packages"]) == sorted(import_name(path.parent) for path in inits)


def test_every_folder_with_source_files_is_a_package():
    sources = [path for top in ("sngd_compile", "kernels") for path in (ROOT / top).rglob("*.py")]
    folders = {path.parent for path in sources}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_top_packages_are_marked_as_typed():
    for top in ("sngd_compile", "kernels"):
        assert (ROOT / top / "py.typed").exists()


def test_no_test_folder_is_called_kernels():
    """`tests/kernels` would make `kernels` importable while the tests run."""
    assert not (ROOT / "tests" / "kernels").exists()
