"""Laws of eigenpairs, and what is said of matrices that have none."""

import pytest
import torch

from sngd_kernels import KernelTypeError, KernelValueError, eigenpairs_ex

EYE = torch.eye(3, dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 2, 63, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_they_make_the_matrix_again(width: int, dtype: torch.dtype) -> None:
    rows = torch.randn(2, width // 2 + 1, width, dtype=dtype)  # half of them are zeros
    matrices = rows.mT @ rows
    matrices = (matrices + matrices.mT) / 2
    values, vectors, info = eigenpairs_ex(matrices)
    assert info.tolist() == [0, 0]
    assert values.dtype == vectors.dtype == torch.float64
    assert (values >= 0).all()
    assert (values.diff(dim=-1) >= 0).all()
    again = vectors * values[:, None, :] @ vectors.mT
    largest = float(values.max())
    assert (again - matrices).abs().max() <= 20 * torch.finfo(dtype).eps * width * largest
    identity = torch.eye(width, dtype=torch.float64).expand(2, -1, -1)
    torch.testing.assert_close(vectors.mT @ vectors, identity, rtol=0, atol=1e-12)


def test_flawed_matrices_are_told_apart_and_spoil_no_other() -> None:
    skew = EYE + torch.ones(3, 3).triu(1)
    bad = torch.stack([2 * EYE, EYE * torch.inf, skew, -EYE])
    values, vectors, info = eigenpairs_ex(bad.view(2, 2, 3, 3))
    assert info.tolist() == [[0, -1], [-2, 0]]
    assert values.view(4, 3).tolist() == [[2.0] * 3, [1.0] * 3, [1.0] * 3, [0.0] * 3]
    assert vectors.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 0)])
def test_nothing(shape: tuple[int, ...]) -> None:
    values, vectors, info = eigenpairs_ex(torch.zeros(shape))
    assert (values.shape, vectors.shape, info.shape) == (shape[:-1], shape, shape[:1])
    assert (info == 0).all()


def test_what_is_refused() -> None:
    with pytest.raises(KernelTypeError, match="bfloat16"):
        eigenpairs_ex(EYE.bfloat16())
    with pytest.raises(KernelValueError, match="square"):
        eigenpairs_ex(EYE[:2])
