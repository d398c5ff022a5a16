"""Observing and refreshing sum rows and find roots with the operations of `sngd_kernels` alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

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
STATISTICS = ("second_moment", "sketch", "diagonal")

ALLOWED = {
    "fisher/samples.py:_square_sum": {"dot", "sum"},  # whether any product of two would overflow
    "fisher/observe.py:observe_": {"sum"},  # the trace of what `diagonal` has summed
    "fisher/observe.py:add_": {"sum"},  # the same function, inside
    "kinds/base.py:trace": {"mean"},  # of the traces of groups
    "kinds/base.py:traces": {"sum"},
    "kinds/base.py:_by_group": {"sum"},
    "kinds/sketch.py:effective_rank": {"sum"},  # asked by metrics, as the next two
    "kinds/sketch.py:residual": {"sum"},
    "kinds/sketch.py:_known": {"sum"},
    "kinds/base.py:large_eigenvalue": {"sum"},  # asked by a diagnosis, as those below
    "kinds/sketch.py:large_eigenvalue": {"@"},
    "kinds/base.py:probe": {"@"},  # what `verify` compares a factor by
    "kinds/sketch.py:without_bias": {"@", "sum"},  # a change of form, no observation
    "kinds/base.py:metric_of": {"inv", "@"},
    "roots/base.py:squared_norm": {"sum"},
    "fisher/next_roots.py:_of_unit_gain": {"mean"},  # of the norms of groups
    "kinds/kronecker.py:_traces_of": {"sum"},
    "fisher/output_side.py:_trace": {"sum"},
    "kinds/kronecker.py:damped": {"mean"},  # of the traces of groups
    "roots/symmetric.py:fold": {"@"},  # applies a root, finds none
}
"""Traces, which no kernel is worth, and maps of weights."""


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


def of_its_own(path: Path) -> dict[str, set[str]]:
    """The functions of a file that sum or find roots by themselves, and with what."""
    found = {function.name: arithmetic(function) for function in functions(path)}
    return {
        f"{path.parent.name}/{path.name}:{name}": calls for name, calls in found.items() if calls
    }


def test_fisher_layers_sum_and_decompose_with_the_kernels():
    found: dict[str, set[str]] = {}
    for path in (*OBSERVING, *REFRESHING):
        found |= of_its_own(path)
    assert found == ALLOWED


def test_rules_sum_with_the_kernels():
    found = [of_its_own(path) for path in RULES]
    named = {name for of_file in found for name in of_file}
    assert {name for name in named if name.partition(":")[2] in STATISTICS} == set()


def test_it_sees_what_it_forbids():
    (function,) = ast.parse(
        "def second_moment(x, out):\n    out.add_(x.T @ x)\n    return torch.bincount(x).rsqrt()"
    ).body
    assert arithmetic(function) == {"@", "bincount", "rsqrt"}
    (allowed,) = ast.parse("def f(x):\n    return sngd_kernels.squared_sum(x).norm").body
    assert arithmetic(allowed) == set()
