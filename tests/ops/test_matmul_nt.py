"""Laws of `matmul_nt`, in float64, and its errors."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sngd_kernels import KernelError, KernelTypeError, KernelValueError, matmul_nt
from sngd_kernels.roots.matmul_nt import product_and_norm

A = torch.ones(2, 3, 4)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (0,)])
@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 1, 1), (63, 100, 7), (100, 63, 0)])
def test_equals_the_formula(lead: tuple[int, ...], rows: int, columns: int, depth: int) -> None:
    a, b, addend = random(*lead, rows, depth), random(*lead, columns, depth), random(rows, columns)
    addend = addend.expand(*lead, rows, columns)
    product, norm = product_and_norm(a, b, alpha=-0.5, beta=2.0, addend=addend, gamma=3.0)
    expected = -0.5 * a @ b.mT + 2 * addend + 3 * torch.eye(rows, columns).double()
    torch.testing.assert_close(product, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm, torch.linalg.matrix_norm(expected))
    torch.testing.assert_close(matmul_nt(a, b), a @ b.mT)


@pytest.mark.parametrize("width", [1, 63, 64, 65, 257])
def test_a_symmetric_result_is_exactly_symmetric(width: int) -> None:
    factor, root = random(width, width), random(2, width, width)
    factor = (factor @ factor.T).expand(2, width, width)
    product = matmul_nt(root @ factor, root, alpha=-1.0, gamma=1.0, symmetric=True)
    expected = torch.eye(width).double() - root @ factor @ root.mT
    torch.testing.assert_close(product, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(product, product.mT)


def test_autocast_changes_nothing_and_no_gradient_flows() -> None:
    a = torch.randn(5, 5, requires_grad=True)
    expected = matmul_nt(a, a)
    assert not expected.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(matmul_nt(a, a), expected)


@pytest.mark.parametrize(
    ("b", "options", "error", "message"),
    [
        (A.double(), {}, KernelTypeError, "float32, torch.float64; expected"),
        (A.long(), {}, KernelTypeError, "int64"),
        (A[0], {}, KernelValueError, r"\(2, 3, 4\), \(3, 4\); expected \[\*, M, K\]"),
        (A[..., :3], {}, KernelValueError, r"\(2, 3, 3\)"),
        (A[:, :2], {"symmetric": True}, KernelValueError, "M = N"),
        (A, {"addend": A}, KernelValueError, r"an addend \[\*, M, N\]"),
        (A.to("meta"), {}, KernelValueError, "on meta"),
    ],
)
def test_errors(b: Tensor, options: dict[str, Any], error: type[KernelError], message: str) -> None:
    with pytest.raises(error, match=message):
        matmul_nt(A, b, **options)


def test_half_precision_is_refused() -> None:
    with pytest.raises(KernelTypeError, match="bfloat16"):
        matmul_nt(A.bfloat16(), A.bfloat16())
