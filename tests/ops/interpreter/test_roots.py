"""The kernels of the roots, interpreted, against float64."""

import pytest
import torch
from torch import Tensor

from sngd_kernels import (
    NotPositiveDefiniteError,
    cholesky_inverse,
    cholesky_inverse_ex,
    denman_beavers,
    matmul_nt,
)
from sngd_kernels.reference import cholesky_inverse_reference
from sngd_kernels.roots.matmul_nt import product_and_norm


def moments(count: int, width: int) -> Tensor:
    rows = torch.randn(count, 2 * width + 4, width)
    return rows.mT @ rows / rows.shape[1]


def relative_error(value: Tensor, exact: Tensor) -> float:
    return ((value.double() - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("count", "width"), [(3, 1), (2, 16), (2, 63), (1, 100), (1, 128)])
def test_cholesky_inverse(count: int, width: int, bias: bool) -> None:
    factors, damping = moments(count, width), torch.linspace(0.1, 0.2, count)
    exact = cholesky_inverse_reference(factors.double(), damping.double(), bias=bias)
    assert relative_error(cholesky_inverse(factors, damping, bias=bias), exact) <= 1e-6


def test_cholesky_inverse_of_any_strides() -> None:
    factors = moments(5, 20)[::2, :17, :17].mT
    exact = cholesky_inverse_reference(factors.double(), torch.zeros(3).double(), bias=False)
    assert relative_error(cholesky_inverse(factors), exact) <= 1e-5


def test_cholesky_inverse_names_what_is_wrong() -> None:
    factors = torch.eye(4).repeat(6, 1, 1)
    factors[1, 2, 2] = -1.0
    factors[2, 0, 1] = torch.inf
    factors[3, 0, 1] = 0.5
    factors[4, 3, 3] = torch.nan
    inverse, info = cholesky_inverse_ex(factors)
    assert info.tolist() == [0, 3, -1, -2, -1, 0]
    assert torch.equal(inverse[info == 0], torch.eye(4).repeat(2, 1, 1))
    assert inverse[info != 0].isnan().all()
    with pytest.raises(
        NotPositiveDefiniteError, match=r"matrix \[1\].*pivot 4 of 4, that of row 2"
    ):
        cholesky_inverse(factors, bias=True)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 1, 1), (100, 100, 63), (63, 130, 65)])
def test_matmul_nt(rows: int, columns: int, depth: int, symmetric: bool) -> None:
    if symmetric:
        columns = rows
    a, addend = torch.randn(2, rows, depth), torch.randn(2, rows, columns)
    b = a if symmetric else torch.randn(2, depth, columns).mT
    addend = addend + addend.mT if symmetric else addend
    product, norm = product_and_norm(
        a, b, alpha=0.5, beta=2.0, addend=addend, gamma=3.0, symmetric=symmetric
    )
    identity = torch.eye(rows, columns, dtype=torch.float64)
    exact = 0.5 * a.double() @ b.double().mT + 2 * addend.double() + 3 * identity
    assert relative_error(product, exact) <= 1e-6
    assert relative_error(norm, torch.linalg.matrix_norm(exact)) <= 1e-6
    assert not symmetric or torch.equal(product, product.mT)
    assert relative_error(matmul_nt(a, b), a.double() @ b.double().mT) <= 1e-6


def test_symmetric_root() -> None:
    factors = moments(2, 17) + 0.1 * torch.eye(17)
    root = denman_beavers(factors).double()
    error = root @ factors.double() @ root - torch.eye(17, dtype=torch.float64)
    assert torch.linalg.matrix_norm(error).max().item() <= 1e-4
