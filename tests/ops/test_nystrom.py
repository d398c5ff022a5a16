"""Laws of `nystrom_root_ex`: exact at full rank, the best of its rank below, a tail that fits."""

import pytest
import torch
from torch import Tensor

from sngd_kernels import KernelTypeError, KernelValueError, nystrom_root_ex


def with_spectrum(eigenvalues: Tensor, count: int = 2) -> Tensor:
    vectors = torch.linalg.qr(torch.randn(count, *2 * eigenvalues.shape, dtype=torch.float64)).Q
    matrices = (vectors * eigenvalues) @ vectors.mT
    return (matrices + matrices.mT) / 2


def written_out(vectors: Tensor, gains: Tensor) -> Tensor:
    size = vectors.shape[-2]
    tail = gains[..., -1:, None]
    rest = torch.eye(size, dtype=gains.dtype) - vectors @ vectors.mT
    return (vectors * gains[..., None, :]) @ vectors.mT + tail * rest


@pytest.mark.parametrize("rank", [31, 40])
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8, 1e10, 1e12])
def test_full_rank_is_exact(condition: float, rank: int) -> None:
    eigenvalues = torch.logspace(0, -1, 31, dtype=torch.float64) ** torch.tensor(condition).log10()
    matrices = with_spectrum(eigenvalues.double())
    vectors, gains, info = nystrom_root_ex(matrices, rank)
    assert vectors.shape == (2, 31, 31)
    root = written_out(vectors, gains)
    error = root @ matrices @ root - torch.eye(31, dtype=torch.float64)
    assert error.abs().max() < 1e-14 * condition + 1e-12
    assert info.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_tail_is_the_last_eigenvalue_with_the_damping(dtype: torch.dtype) -> None:
    """Ten large eigenvalues and a floor of 1: with 10 of rank the floor is not taken for 0.1."""
    spectrum = torch.cat([torch.linspace(90, 50, 10), torch.ones(30)]).double() + 0.1
    matrices = with_spectrum(spectrum).to(dtype)
    vectors, gains, _ = nystrom_root_ex(matrices, 10)
    expected = spectrum[:10].rsqrt().to(dtype)
    torch.testing.assert_close(gains[1], expected, rtol=1e-3, atol=0)
    applied = written_out(vectors, gains) @ matrices @ written_out(vectors, gains)
    assert torch.linalg.eigvalsh(applied).max() < 1.01  # no step longer than the exact one's
    vectors, gains, _ = nystrom_root_ex(matrices, 11)
    torch.testing.assert_close(
        written_out(vectors, gains) @ matrices @ written_out(vectors, gains),
        torch.eye(40, dtype=dtype).expand(2, -1, -1),
        rtol=0,
        atol=1e-3,
    )


def test_it_is_orthonormal_increasing_and_the_same_every_time() -> None:
    matrices = with_spectrum(torch.logspace(1, -3, 40, dtype=torch.float64), count=3)
    vectors, gains, _ = nystrom_root_ex(matrices.view(3, 1, 40, 40), 7)
    assert (vectors.shape, gains.shape) == ((3, 1, 40, 7), (3, 1, 7))
    identity = torch.eye(7, dtype=torch.float64).expand(3, 1, 7, 7)
    torch.testing.assert_close(vectors.mT @ vectors, identity)
    assert (gains.diff() >= 0).all()
    again = nystrom_root_ex(matrices.view(3, 1, 40, 40), 7)
    assert torch.equal(again[0], vectors)
    assert torch.equal(again[1], gains)


def test_what_is_wrong_is_counted_and_has_no_root() -> None:
    matrices = torch.eye(3).repeat(4, 1, 1)
    matrices[1, 0, 0], matrices[2, 0, 1], matrices[3] = torch.nan, 1.0, -torch.eye(3)
    vectors, gains, info = nystrom_root_ex(matrices, 2)
    assert info.tolist() == [0, -1, -2, 1]
    torch.testing.assert_close(gains[0], torch.ones(2))
    singular = torch.ones(1, 5, 5, dtype=torch.float64)
    assert nystrom_root_ex(singular, 2)[2].item() != 0
    assert nystrom_root_ex(singular, 1)[2].item() == 0
    assert nystrom_root_ex(torch.zeros(1, 5, 5), 2)[2].item() != 0
    assert vectors[1:].isnan().all()
    assert gains[1:].isnan().all()


def test_errors_name_value_expectation_and_remedy() -> None:
    with pytest.raises(KernelValueError, match="rank is 0; expected at least 1"):
        nystrom_root_ex(torch.eye(3), 0)
    with pytest.raises(KernelTypeError, match="float16"):
        nystrom_root_ex(torch.eye(3).half(), 2)
