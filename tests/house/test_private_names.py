"""The lint rule on private names of torch and on executed text fails on a planted violation."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/house/private_names.py"
specification = importlib.util.spec_from_file_location("private_names", SCRIPT)
lint = importlib.util.module_from_spec(specification)
specification.loader.exec_module(lint)


def planted(folder: Path, code: str, name: str = "sngd_compile/fisher/planted.py") -> list[str]:
    """Return what the rule says of a repository with one file."""
    path = folder / name
    path.parent.mkdir(parents=True)
    path.write_text(code)
    return lint.problems(folder)


PRIVATE = [
    "import torch._dynamo",
    "import torch\ntorch._dynamo.reset()",
    "from torch._C import DispatchKey",
    "from torch.utils import _pytree as tree",
    "from torch.nn import Module\nmodule = Module()\nmodule._call_impl()",
    "from torch.autograd import Variable\nVariable._execution_engine",
    "x = getattr(object(), '_dynamo_source', None)",
    "held = {}\nheld.get('_orig_mod')",
    "x = ('torch.utils._contextlib',)",
]
EXECUTED = [
    "exec('1')",
    "x = eval('1')",
    "code = compile('1', '', 'eval')",
    "run = exec",
    "import builtins\nbuiltins.exec('1')",
    "from builtins import exec as run",
    "__import__('os')",
]
ALLOWED = [
    "class A:\n    def f(self):\n        return self._own",
    "class A(dict):\n    def _apply(self, f):\n        return super()._apply(f)",
    "def f(module):\n    return module._parameters, module._modules, module._buffers",
    "import sys\nframe = sys._getframe(1)",
    "import re, torch\nre.compile('a')\ntorch.compile",
    "def f(module):\n    return module.eval()",
    '"""Says torch._dynamo in words."""',
    "def f(name):\n    return f'{name}_fisher'",
    "from __future__ import annotations",
]


@pytest.mark.parametrize("code", PRIVATE)
def test_a_private_name_is_found(code: str, tmp_path: Path):
    (problem,) = planted(tmp_path, code)
    assert problem.startswith(f"sngd_compile/fisher/planted.py:{code.count(chr(10)) + 1}: ")
    assert "is a private name" in problem


@pytest.mark.parametrize("code", EXECUTED)
def test_executed_text_is_found(code: str, tmp_path: Path):
    (problem,) = planted(tmp_path, code)
    assert "turns text into code" in problem


@pytest.mark.parametrize("code", ALLOWED)
def test_what_is_allowed_is_not_found(code: str, tmp_path: Path):
    assert planted(tmp_path, code) == []


@pytest.mark.parametrize("code", PRIVATE[:3])
def test_the_kernels_have_no_private_names_either(code: str, tmp_path: Path):
    assert planted(tmp_path, code, "kernels/planted.py")


def test_the_one_module_for_each_may_use_them(tmp_path: Path):
    assert planted(tmp_path / "a", "import torch._C", lint.PRIVATE) == []
    assert planted(tmp_path / "b", "exec('1')", lint.EXECUTES) == []
    assert planted(tmp_path / "c", "exec('1')", lint.PRIVATE) != []
    assert planted(tmp_path / "d", "import torch._C", lint.EXECUTES) != []


def test_this_repository_passes_and_the_script_fails_on_a_planted_violation(tmp_path: Path):
    assert lint.problems(ROOT) == []
    copy = tmp_path / "tests/house/private_names.py"
    copy.parent.mkdir(parents=True)
    copy.write_text(SCRIPT.read_text())
    planted(tmp_path, "import torch._C")
    run = subprocess.run([sys.executable, copy], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "planted.py:1: import torch._C" in run.stderr


def test_every_private_name_is_used():
    """What nobody imports any more goes."""
    defined: set[str] = set()
    for node in ast.parse((ROOT / lint.PRIVATE).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (n for target in targets for n in ast.walk(target))
            defined.update(n.id for n in names if isinstance(n, ast.Name))
    imported = {
        alias.name
        for path in (ROOT / "sngd_compile").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "sngd_compile.torch_private"
        for alias in node.names
    }
    assert len(imported) > 10
    public = {name for name in defined if not name.startswith("_")}
    assert public - imported == set()
