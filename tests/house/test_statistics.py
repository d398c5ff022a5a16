"""Observing and refreshing sum rows and find roots with the operations of `sngd_kernels` alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sngd_compile"

# Calls that add over rows, and calls that find a root or an inverse of one.
SUMS = {"sum", "mean", "dot", "mm", "bmm", "matmul", "addmm", "baddbmm", "einsum", "outer", "norm"}
SUMS |= {"bincount", "index_add", "index_add_", "scatter_add", "scatter_add_", "cov", "cumsum"}
ROOTS = {"rsqrt", "pow", "cholesky", "cholesky_ex", "eigh", "svd", "qr", "inv", "inverse"}
ROOTS |= {"solve_triangular", "cholesky_inverse", "matrix_power"}

OBSERVING = [
    PACKAGE / "fisher" / f"{name}.py" for name in ("observe", "observe_gradient", "samples")
]
REFRESHING = [
    *(PACKAGE / "fisher" / f"{name}.py" for name in ("average", "next_roots", "output_side")),
    *(PACKAGE / "fisher" / "kinds").glob("*.py"),
    *(PACKAGE / "fisher" / "roots" / f"{name}.py" for name in ("base", "symmetric")),
    PACKAGE / "training" / "refresh.py",
]
COMPOSITES = [PACKAGE / "modules" / f"{name}.py" for name in ("attention", "recurrent")]
RULES = sorted([*(PACKAGE / "rules").glob("*.py"), *COMPOSITES])
STATISTICS = ("second_moment", "diagonal")

ALLOWED = {
    ("samples.py", "_square_sum"): {"dot", "sum"},  # whether any product of two would overflow
    ("observe.py", "_add_rows"): {"sum"},  # the trace of what `diagonal` has summed
}


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    """The functions and methods of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def arithmetic(function: ast.FunctionDef) -> set[str]:
    """The sums, products and roots in a function that are not calls of `sngd_kernels`."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
            found.add("@")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if not (isinstance(owner, ast.Name) and owner.id == "sngd_kernels"):
                found.add(node.func.attr)
    return found & (SUMS | ROOTS | {"@"})


@pytest.mark.parametrize("path", [*OBSERVING, *REFRESHING], ids=lambda path: path.name)
def test_the_runtime_sums_and_decomposes_with_the_kernels(path: Path):
    for function in functions(path):
        allowed = ALLOWED.get((path.name, function.name), set())
        assert arithmetic(function) - allowed == set(), function.name


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_rules_sum_with_the_kernels(path: Path):
    for function in functions(path):
        if function.name in STATISTICS:
            assert arithmetic(function) == set(), function.name


def test_every_exception_is_needed():
    for (file, name), allowed in ALLOWED.items():
        (path,) = [path for path in (*OBSERVING, *REFRESHING) if path.name == file]
        (function,) = [function for function in functions(path) if function.name == name]
        assert arithmetic(function) == allowed


def test_it_sees_what_it_forbids():
    (function,) = ast.parse(
        "def second_moment(x, out):\n    out.add_(x.T @ x)\n    return torch.bincount(x).rsqrt()"
    ).body
    assert arithmetic(function) == {"@", "bincount", "rsqrt"}
    (allowed,) = ast.parse("def f(x):\n    return sngd_kernels.squared_sum(x).norm").body
    assert arithmetic(allowed) == set()
