"""Laws of `squared_sum`, in float64 against the written-out specification."""

from collections.abc import Callable

import pytest
import torch

from sngd_kernels import KernelError, KernelTypeError, KernelValueError, second_moment, squared_sum
from sngd_kernels.reference import squared_sum_reference


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "shape", [(0, 3), (3, 0), (1, 1), (63, 100), (2, 7, 5), (3, 0, 2), (1, 100, 1)]
)
def test_equals_the_specification(shape: tuple[int, ...], bias: bool) -> None:
    x = random(*shape)
    torch.testing.assert_close(
        squared_sum(x, bias=bias), squared_sum_reference(x, bias=bias), rtol=1e-13, atol=1e-13
    )


def test_it_is_the_diagonal_of_the_second_moment() -> None:
    x = random(63, 65)
    diagonal = second_moment(x, bias=True).diagonal()
    torch.testing.assert_close(squared_sum(x, bias=True), diagonal, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_widened_before_the_square(dtype: torch.dtype) -> None:
    x = 300 * random(1000, 3, dtype=dtype)  # squares overflow float16, counts exceed bfloat16
    squares = squared_sum(x, bias=True)
    assert squares.dtype == torch.float32
    exact = squared_sum_reference(x.double(), bias=True)
    torch.testing.assert_close(squares.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.mT, id="transposed"),
        pytest.param(lambda x: x[..., ::3, 1::2], id="strided"),
        pytest.param(lambda x: x[:, :1].expand(-1, 9, -1), id="expanded"),
    ],
)
def test_any_strides(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = view(random(2, 30, 20))
    expected = squared_sum_reference(x.contiguous(), bias=True)
    torch.testing.assert_close(squared_sum(x, bias=True), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_out_is_added_to_and_returned(bias: bool) -> None:
    first, second = random(2, 63, 5), random(2, 10, 5)
    buffer = torch.zeros(2, 2 * (5 + bias), dtype=torch.float64)[:, ::2]
    for rows in (first, second):
        assert squared_sum(rows, bias=bias, out=buffer) is buffer
    together = squared_sum_reference(torch.cat([first, second], 1), bias=bias)
    torch.testing.assert_close(buffer, together, rtol=1e-13, atol=0)


def test_autocast_changes_nothing_and_no_gradient_flows() -> None:
    x = random(100, 65, dtype=torch.float32).requires_grad_()
    expected = squared_sum(x, bias=True)
    assert not expected.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(squared_sum(x, bias=True), expected)


@pytest.mark.parametrize(
    ("x", "out", "error", "message"),
    [
        (torch.ones(3, 2, dtype=torch.int64), None, KernelTypeError, r"int64.*x\.float\(\)"),
        (torch.ones(3), None, KernelValueError, r"\(3,\).*expected rows \[N, D\] or \[groups"),
        (torch.ones(1, 1, 3, 2), None, KernelValueError, r"x\.flatten\(0, -2\)"),
        (torch.ones(3, 2), torch.ones(3), KernelValueError, r"\(3,\).*expected \(2,\)"),
        (torch.ones(3, 2), torch.ones(2).double(), KernelTypeError, "float64.*float32"),
    ],
)
def test_errors_name_value_expectation_and_remedy(
    x: torch.Tensor, out: torch.Tensor | None, error: type[KernelError], message: str
) -> None:
    with pytest.raises(error, match=message):
        squared_sum(x, out=out)
