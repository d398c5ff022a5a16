"""Laws of `second_moment`, in float64 against the written-out specification."""

from collections.abc import Callable

import pytest
import torch

from sngd_kernels import KernelError, KernelTypeError, KernelValueError, second_moment
from sngd_kernels.reference import second_moment_reference

HALF_DTYPES = (torch.float16, torch.bfloat16)


def random_rows(count: int, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * count + width)
    return torch.randn(count, width, dtype=torch.float64, generator=generator).to(dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [0, 1, 7, 63, 64, 65, 100, 257])
@pytest.mark.parametrize("count", [0, 1, 63, 100])
def test_equals_the_specification(count: int, width: int, bias: bool) -> None:
    x = random_rows(count, width)
    moment = second_moment(x, bias=bias)
    torch.testing.assert_close(
        moment, second_moment_reference(x, bias=bias), rtol=1e-12, atol=1e-12
    )
    assert torch.equal(moment, moment.T)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_DTYPES])
def test_half_precision_is_widened_before_the_product(dtype: torch.dtype, bias: bool) -> None:
    x = random_rows(100, 63, dtype)
    moment = second_moment(x, bias=bias)
    assert moment.dtype == torch.float32
    exact = second_moment_reference(x.double(), bias=bias)
    torch.testing.assert_close(moment.double(), exact, rtol=1e-5, atol=1e-4)


def test_float64_stays_float64() -> None:
    assert second_moment(random_rows(3, 2)).dtype == torch.float64


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.T, id="transposed"),
        pytest.param(lambda x: x[::3, 1::2], id="strided"),
        pytest.param(lambda x: x[:1].expand(9, -1), id="expanded"),
        pytest.param(lambda x: x.flip(0)[5:, 3:], id="offset"),
    ],
)
def test_any_strides(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = view(random_rows(100, 70))
    expected = second_moment_reference(x.contiguous(), bias=True)
    torch.testing.assert_close(second_moment(x, bias=True), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_out_is_added_to_and_returned(bias: bool) -> None:
    first, second = random_rows(63, 65), random_rows(100, 65)
    buffer = second_moment(first, bias=bias)
    assert second_moment(second, bias=bias, out=buffer) is buffer
    together = second_moment(torch.cat([first, second]), bias=bias)
    torch.testing.assert_close(buffer, together, rtol=1e-12, atol=1e-12)


def test_out_may_be_strided() -> None:
    x = random_rows(10, 65)
    buffer = torch.zeros(66, 132, dtype=x.dtype)[:, ::2]
    second_moment(x, bias=True, out=buffer)
    assert torch.equal(buffer, second_moment(x, bias=True))


def test_autocast_changes_nothing() -> None:
    x = random_rows(100, 65, torch.float32)
    expected = second_moment(x, bias=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(second_moment(x, bias=True), expected)


def test_no_gradient_flows() -> None:
    x = random_rows(3, 2).requires_grad_()
    buffer = torch.zeros(2, 2, dtype=x.dtype)
    assert not second_moment(x, out=buffer).requires_grad
    assert not second_moment(x).requires_grad


@pytest.mark.parametrize(
    ("x", "out", "error", "message"),
    [
        (torch.ones(3, 2, dtype=torch.int64), None, KernelTypeError, r"int64.*x\.float\(\)"),
        (torch.ones(3, 2, dtype=torch.complex64), None, KernelTypeError, "complex64"),
        (torch.ones(3), None, KernelValueError, r"\(3,\).*expected rows \[N, D\]"),
        (torch.ones(3, 2, 1), None, KernelValueError, r"\(3, 2, 1\).*x\.flatten\(0, -2\)"),
        (torch.ones(3, 2), torch.ones(3, 3), KernelValueError, r"\(3, 3\).*expected \(2, 2\)"),
        (torch.ones(3, 2), torch.ones(2, 2).double(), KernelTypeError, "float64.*float32"),
        (torch.ones(3, 2), torch.ones(2, 2, device="meta"), KernelValueError, "meta.*cpu"),
    ],
)
def test_errors_name_value_expectation_and_remedy(
    x: torch.Tensor, out: torch.Tensor | None, error: type[KernelError], message: str
) -> None:
    with pytest.raises(error, match=message):
        second_moment(x, out=out)


@pytest.mark.parametrize(
    ("error", "builtin"), [(KernelTypeError, TypeError), (KernelValueError, ValueError)]
)
def test_errors_have_one_base_and_a_builtin_kind(error: type, builtin: type) -> None:
    assert issubclass(error, KernelError)
    assert issubclass(error, builtin)
