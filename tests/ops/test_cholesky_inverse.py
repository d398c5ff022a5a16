"""Laws of `cholesky_inverse`, in float64, and what it says of matrices without a root."""

import pytest
import torch
from torch import Tensor

from sngd_kernels import (
    KernelError,
    KernelTypeError,
    KernelValueError,
    NotPositiveDefiniteError,
    cholesky_inverse,
    cholesky_inverse_ex,
    second_moment,
)
from sngd_kernels.reference import cholesky_inverse_reference

FACTOR = torch.eye(4)


def moments(count: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    rows = torch.randn(count, 2 * width + 4, width, dtype=torch.float64)
    return (rows.mT @ rows / rows.shape[1]).to(dtype)


def changed(row: int, column: int, value: float) -> Tensor:
    factor = FACTOR.clone()
    factor[row, column] = value
    return factor


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [1, 2, 63, 100, 257])
def test_is_the_inverse_of_the_factor(width: int, bias: bool) -> None:
    factors, damping = moments(3, width), torch.tensor([0.1, 0.2, 0.3]).double()
    root = cholesky_inverse(factors, damping, bias=bias)
    expected = cholesky_inverse_reference(factors, damping, bias=bias)
    torch.testing.assert_close(root, expected, rtol=1e-10, atol=1e-10)
    identity = torch.eye(width).double()
    damped = factors + damping[:, None, None] * identity
    torch.testing.assert_close(root @ damped @ root.mT, identity.expand(3, -1, -1))
    torch.testing.assert_close(root.mT @ root @ damped, identity.expand(3, -1, -1))


def test_the_bias_centres_and_whitens() -> None:
    x = 3 + torch.randn(500, 5).double()
    root = cholesky_inverse(second_moment(x, bias=True) / 500, bias=True)
    whitened = torch.cat([x, torch.ones(500, 1)], 1) @ root.T
    torch.testing.assert_close(whitened[:, :-1].mean(0), torch.zeros(5).double())
    torch.testing.assert_close(whitened[:, -1], torch.ones(500).double())
    torch.testing.assert_close(whitened[:, :-1].T.cov(correction=0), torch.eye(5).double())
    assert torch.equal(root.tril()[:-1, :-1], root[:-1, :-1])


def test_any_leading_axes_and_strides() -> None:
    factors = moments(6, 7).view(2, 3, 7, 7)
    root = cholesky_inverse(factors.mT, torch.ones(3))
    expected = [[cholesky_inverse(matrix, 1.0) for matrix in matrices] for matrices in factors]
    torch.testing.assert_close(root, torch.stack([torch.stack(row) for row in expected]))
    assert cholesky_inverse(factors[0, 0]).shape == (7, 7)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3, 3), (2, 0, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    inverse, info = cholesky_inverse_ex(torch.empty(shape))
    assert inverse.shape == shape
    assert info.tolist() == torch.zeros(shape[:-2]).tolist()


def test_the_argument_is_left_alone() -> None:
    factors = moments(2, 5)
    before = factors.clone()
    cholesky_inverse(factors, 0.5, bias=True)
    assert torch.equal(factors, before)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_wrong_is_counted_and_poisoned(dtype: torch.dtype, bias: bool) -> None:
    flawed = [FACTOR, changed(2, 2, -1), changed(0, 1, torch.inf), changed(0, 1, 0.5)]
    flawed += [changed(3, 3, torch.nan), changed(1, 1, torch.inf), FACTOR]
    inverse, info = cholesky_inverse_ex(torch.stack(flawed).to(dtype), bias=bias)
    assert info.tolist() == [0, 3 + bias, -1, -2, -1, -1, 0]
    assert inverse[info != 0].isnan().all()
    assert torch.equal(inverse[info == 0], FACTOR.to(dtype).expand(2, 4, 4))


@pytest.mark.parametrize(
    ("factor", "damping", "error", "message"),
    [
        (torch.ones(2, 3), 0.0, KernelValueError, r"\(2, 3\); expected square ones"),
        (torch.ones(2), 0.0, KernelValueError, r"\(2,\); expected square ones"),
        (FACTOR.half(), 0.0, KernelTypeError, "float16; expected float32 or float64"),
        (FACTOR.long(), 0.0, KernelTypeError, "int64"),
        (FACTOR, -1.0, KernelValueError, r"damping is -1.0; expected at least 0"),
        (FACTOR, float("nan"), KernelValueError, "damping is nan"),
        (FACTOR.expand(2, 4, 4), torch.ones(3), KernelValueError, r"\(3,\) on cpu.*or \(2,\)"),
        (FACTOR, torch.ones((), device="meta"), KernelValueError, "on meta; expected"),
        (changed(0, 0, torch.nan), 0.0, KernelValueError, "the matrix has entries that are not f"),
        (changed(0, 1, 0.5), 0.0, KernelValueError, r"is not symmetric.*\(G \+ G.mT\) / 2"),
        (
            torch.stack([FACTOR, changed(2, 2, 0.0)]),
            0.0,
            NotPositiveDefiniteError,
            r"matrix \[1\] of the batch.*pivot 3 of 4, that of row 2.*raise the damping",
        ),
    ],
)
def test_errors(
    factor: Tensor, damping: float | Tensor, error: type[KernelError], message: str
) -> None:
    with pytest.raises(error, match=message):
        cholesky_inverse(factor, damping)


def test_the_pivot_of_the_bias_is_the_first() -> None:
    with pytest.raises(NotPositiveDefiniteError, match="pivot 1 of 4, that of row 3"):
        cholesky_inverse(changed(3, 3, -1.0), bias=True)


def test_an_overflow_is_no_root() -> None:
    with pytest.raises(KernelError):
        cholesky_inverse(torch.eye(3) * 3e38, 3e38)
