"""Laws of `channel_second_moment`, in float64 against the written-out specification."""

from collections.abc import Callable

import pytest
import torch

from sngd_kernels import KernelError, KernelTypeError, KernelValueError, channel_second_moment
from sngd_kernels.reference import channel_second_moment_reference


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 1 + torch.randn(shape, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 1), (3, 65, 49), (0, 3, 2), (2, 3, 0)])
def test_equals_the_specification(shape: tuple[int, ...], bias: bool) -> None:
    x = random(*shape)
    moments = channel_second_moment(x, bias=bias)
    exact = channel_second_moment_reference(x, bias=bias)
    torch.testing.assert_close(moments, exact, rtol=1e-13, atol=1e-13)
    assert torch.equal(moments, moments.mT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_widened_before_the_product(dtype: torch.dtype) -> None:
    x = 300 * random(100, 3, 7, dtype=dtype)
    moments = channel_second_moment(x, bias=True)
    assert moments.dtype == torch.float32
    exact = channel_second_moment_reference(x.double(), bias=True)
    torch.testing.assert_close(moments.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.permute(0, 2, 1), id="channels last"),
        pytest.param(lambda x: x[::2, 1:, ::3], id="strided"),
        pytest.param(lambda x: x[:1].expand(9, -1, -1), id="expanded"),
    ],
)
def test_any_strides(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = view(random(4, 6, 8))
    expected = channel_second_moment_reference(x.contiguous(), bias=True)
    torch.testing.assert_close(channel_second_moment(x, bias=True), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_out_is_added_to_and_returned(bias: bool) -> None:
    first, second = random(2, 6, 5), random(3, 6, 5)
    buffer = channel_second_moment(first, bias=bias)
    assert channel_second_moment(second, bias=bias, out=buffer) is buffer
    together = channel_second_moment_reference(torch.cat([first, second]), bias=bias)
    torch.testing.assert_close(buffer, together, rtol=1e-13, atol=0)


def test_autocast_changes_nothing_and_no_gradient_flows() -> None:
    x = random(3, 65, 4, dtype=torch.float32).requires_grad_()
    expected = channel_second_moment(x, bias=True)
    assert not expected.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(channel_second_moment(x, bias=True), expected)


@pytest.mark.parametrize(
    ("x", "out", "error", "message"),
    [
        (torch.ones(3, 2, 1, dtype=torch.int64), None, KernelTypeError, "int64.*float16"),
        (torch.ones(3, 2), None, KernelValueError, r"\(3, 2\).*expected \[N, C, P\].*unsqueeze"),
        (torch.ones(3, 2, 1), torch.ones(2), KernelValueError, r"\(2,\).*expected \(2, 1, 1\)"),
    ],
)
def test_errors_name_value_expectation_and_remedy(
    x: torch.Tensor, out: torch.Tensor | None, error: type[KernelError], message: str
) -> None:
    with pytest.raises(error, match=message):
        channel_second_moment(x, out=out)
