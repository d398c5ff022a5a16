"""Laws of `diagonal_root_ex`."""

import pytest
import torch

from sngd_kernels import KernelTypeError, KernelValueError, diagonal_root_ex


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 4), (0,), (2, 0), (0, 3)])
def test_it_is_the_root_of_the_inverse(shape: tuple[int, ...]) -> None:
    scales = torch.logspace(-100, 100, shape[-1], dtype=torch.float64)
    diagonals = (1 + torch.rand(shape, dtype=torch.float64)) * scales
    roots, info = diagonal_root_ex(diagonals)
    torch.testing.assert_close(roots**2 * diagonals, torch.ones_like(diagonals), rtol=1e-14, atol=0)
    assert torch.equal(info, torch.zeros(shape[:-1], dtype=torch.int32))


def test_what_is_wrong_is_counted_and_has_no_root() -> None:
    nan, inf = float("nan"), float("inf")
    flawed = [[1, 1, 1], [1, 0, -1], [-1, 1, 1], [1, nan, 0], [0, 1, inf], [1, 1, -inf]]
    roots, info = diagonal_root_ex(torch.tensor(flawed))
    assert info.tolist() == [0, 2, 1, -1, -1, -1]
    assert torch.equal(roots[0], torch.ones(3))
    assert roots[1:].isnan().all()


def test_errors_name_value_expectation_and_remedy() -> None:
    with pytest.raises(KernelTypeError, match=r"torch\.float16; expected float32 or float64"):
        diagonal_root_ex(torch.ones(3).half())
    with pytest.raises(KernelValueError, match=r"shape \(\); expected \[\*, D\]"):
        diagonal_root_ex(torch.tensor(1.0))
