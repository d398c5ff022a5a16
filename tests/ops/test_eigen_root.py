"""Laws of the symmetric root by an eigendecomposition, and what it says of matrices without one."""

import pytest
import torch

from sngd_kernels import KernelTypeError, KernelValueError, eigen_root_ex

EYE = torch.eye(3, dtype=torch.float64)


def definite(width: int, count: int) -> torch.Tensor:
    rows = torch.randn(count, width + 2, width, dtype=torch.float64)
    return rows.mT @ rows + 1e-2 * torch.eye(width, dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 2, 63, 100])
@pytest.mark.parametrize(
    ("dtype", "allowed"), [(torch.float64, 1e-10), (torch.float32, 1e-3)], ids=str
)
def test_it_whitens_and_is_symmetric(width: int, dtype: torch.dtype, allowed: float) -> None:
    matrices = definite(width, 2)
    root, info = eigen_root_ex(matrices.to(dtype))
    assert root.dtype == dtype
    assert info.tolist() == [0, 0]
    assert torch.equal(root, root.mT)
    assert (torch.linalg.eigvalsh(root) > 0).all()
    error = root.double() @ matrices @ root.double() - torch.eye(width)
    assert error.abs().max() <= allowed
    assert torch.equal(
        eigen_root_ex(matrices[0].to(dtype))[0].isnan(), torch.zeros(width, width) > 0
    )


def test_each_matrix_without_a_root_is_told_apart() -> None:
    skew = EYE + torch.ones(3, 3).triu(1)
    bad = torch.stack([EYE, -EYE, EYE * torch.tensor([1, 0, 2]), EYE * torch.inf, skew, 0 * EYE])
    root, info = eigen_root_ex(bad.view(2, 3, 3, 3))
    assert info.tolist() == [[0, 3, 1], [-1, -2, 3]]
    assert torch.equal(root[0, 0], EYE)
    assert root.view(6, 9)[1:].isnan().all()


def test_many_equal_eigenvalues_are_no_difficulty_in_float32() -> None:
    rows = torch.randn(2, 200)
    root, info = eigen_root_ex(rows.T @ rows + torch.eye(200))
    assert info == 0
    assert root.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 0)])
def test_nothing(shape: tuple[int, ...]) -> None:
    root, info = eigen_root_ex(torch.zeros(shape))
    assert (root.shape, info.shape) == (shape, shape[:1])
    assert (info == 0).all()


def test_what_is_refused() -> None:
    with pytest.raises(KernelTypeError, match="bfloat16"):
        eigen_root_ex(EYE.bfloat16())
    with pytest.raises(KernelValueError, match="square"):
        eigen_root_ex(EYE[:2])
