"""The kernels of the sums of squares, interpreted, against float64 and the specification."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sngd_kernels import channel_second_moment, explain, squared_sum
from sngd_kernels.gpu.partials import splits_of_rows
from sngd_kernels.reference import channel_second_moment_reference, squared_sum_reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape) + 0.5).to(dtype)


def assert_equal_up_to_rounding(found: Tensor, exact: Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (63, 100), (9, 257), (3, 20, 7), (2, 1, 300)])
def test_squared_sum(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    x = random(*shape, dtype=dtype)
    exact = squared_sum_reference(x.double(), bias=bias)
    assert_equal_up_to_rounding(squared_sum(x, bias=bias), exact)
    buffer = torch.ones(exact.shape)
    assert squared_sum(x, bias=bias, out=buffer) is buffer
    assert_equal_up_to_rounding(buffer, 1 + exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (40, 65, 1), (3, 5, 49), (2, 3, 300), (5, 1, 2)])
def test_channel_second_moment(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    x = random(*shape, dtype=dtype)
    exact = channel_second_moment_reference(x.double(), bias=bias)
    assert_equal_up_to_rounding(channel_second_moment(x, bias=bias), exact)
    buffer = torch.ones(exact.shape)
    assert channel_second_moment(x, bias=bias, out=buffer) is buffer
    assert_equal_up_to_rounding(buffer, 1 + exact)


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.mT, id="transposed"),
        pytest.param(lambda x: x[::2, 1:, ::3], id="strided"),
        pytest.param(lambda x: x[:1].expand(9, -1, -1), id="expanded"),
    ],
)
def test_any_strides(view: Callable[[Tensor], Tensor]) -> None:
    x = view(random(4, 6, 8))
    exact = channel_second_moment_reference(x.double(), bias=True)
    assert_equal_up_to_rounding(channel_second_moment(x, bias=True), exact)
    assert_equal_up_to_rounding(squared_sum(x), squared_sum_reference(x.double()))


def test_rows_are_split_and_added_in_order() -> None:
    x = random(8000, 30)
    assert splits_of_rows(8000 // 64, 1, 8) > 1
    squares = squared_sum(x, bias=True)
    assert_equal_up_to_rounding(squares, squared_sum_reference(x.double(), bias=True))
    assert torch.equal(squares, squared_sum(x, bias=True))
    channels = x.T.reshape(1, 30, 8000).expand(40, -1, -1)
    exact = channel_second_moment_reference(channels.double(), bias=True)
    moments = channel_second_moment(channels[:, :2], bias=True)
    assert_equal_up_to_rounding(moments, exact[:2])


@pytest.mark.parametrize("shape", [(1, 0, 2), (3, 0, 2), (3, 2, 0)])
def test_nothing_needs_no_kernel(shape: tuple[int, ...]) -> None:
    x = random(*shape)
    assert explain(squared_sum, x).reason == "nothing to compute"
    assert torch.equal(squared_sum(x, bias=True), squared_sum_reference(x, bias=True))
