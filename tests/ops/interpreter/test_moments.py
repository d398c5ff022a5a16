"""The kernels of the second moments, interpreted, against float64 and the specification."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sngd_kernels import conv_second_moment, explain, second_moment, unit_second_moment
from sngd_kernels.conv.geometry import conv_geometry
from sngd_kernels.gpu import partials
from sngd_kernels.gpu.target import compact
from sngd_kernels.reference import (
    conv_second_moment_reference,
    second_moment_reference,
    unit_second_moment_reference,
)

TOLERANCE = 1e-6
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
VIEWS = {
    "transposed": lambda x: x.T,
    "strided": lambda x: x[::3, 1::2],
    "expanded": lambda x: x[:1].expand(9, -1),
    "offset": lambda x: x[5:, 3:],
}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


def assert_equal_up_to_rounding(moment: Tensor, exact: Tensor) -> None:
    assert moment.dtype == torch.float32
    assert torch.equal(moment, moment.mT)
    error = (moment.double() - exact).abs().max() / exact.abs().max()
    assert error.item() <= TOLERANCE


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("count", "width"), [(1, 1), (63, 100), (100, 63), (257, 1), (1, 257)])
def test_second_moment(count: int, width: int, bias: bool, dtype: torch.dtype) -> None:
    x = random(count, width, dtype=dtype)
    exact = second_moment_reference(x.double(), bias=bias)
    assert_equal_up_to_rounding(second_moment(x, bias=bias), exact)


def test_rows_are_split_and_added_in_order() -> None:
    x = random(1600, 63)
    assert partials.splits_of_rows(25, 1, 2) > 1
    moment = second_moment(x, bias=True)
    assert_equal_up_to_rounding(moment, second_moment_reference(x.double(), bias=True))
    assert torch.equal(moment, second_moment(x, bias=True))


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_second_moment_of_any_strides(view: Callable[[Tensor], Tensor]) -> None:
    x = view(random(100, 70))
    assert_equal_up_to_rounding(
        second_moment(x, bias=True), second_moment_reference(x.double(), bias=True)
    )


def test_offsets_inside_a_tile_stay_within_32_bits() -> None:
    long_strides = torch.empty_strided((3, 64, 128), (7, 1, 2**26), device="meta")
    assert compact(long_strides).stride() == (8192, 128, 1)
    usual = torch.empty((64, 2**20), device="meta")
    assert compact(usual) is usual


@pytest.mark.parametrize("bias", [False, True])
def test_second_moment_is_added_to_a_strided_buffer(bias: bool) -> None:
    x = random(63, 100)
    size = 100 + bias
    whole = torch.full((size, 2 * size), torch.nan)
    buffer = whole[:, ::2].fill_(1.0)
    assert second_moment(x, bias=bias, out=buffer) is buffer
    assert_equal_up_to_rounding(buffer, 1 + second_moment_reference(x.double(), bias=bias))
    assert whole[:, 1::2].isnan().all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("count", "width"), [(0, 3), (3, 0), (0, 0)])
def test_empty_rows_need_no_kernel(count: int, width: int, bias: bool) -> None:
    x = random(count, width)
    assert explain(second_moment, x).reason == "nothing to compute"
    assert torch.equal(second_moment(x, bias=bias), second_moment_reference(x, bias=bias))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("count", "width", "units"), [(1, 1, 1), (63, 100, 2), (100, 5, 3)])
def test_unit_second_moment(
    count: int, width: int, units: int, bias: bool, dtype: torch.dtype
) -> None:
    x, weights = random(count, width, dtype=dtype), torch.rand(units, count).T
    exact = unit_second_moment_reference(x.double(), weights.double(), bias=bias)
    moments = unit_second_moment(x, weights, bias=bias)
    assert_equal_up_to_rounding(moments, exact)
    assert unit_second_moment(x, weights, bias=bias, out=moments) is moments
    assert_equal_up_to_rounding(moments, 2 * exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("shape", "kernel", "padding", "dilation", "groups"),
    [
        pytest.param((2, 3, 5, 6), 1, 0, 1, 1, id="one tap"),
        pytest.param((1, 3, 8, 7), 3, 1, 1, 1, id="3x3"),
        pytest.param((1, 6, 4, 5), (2, 3), (1, 2), (1, 2), 2, id="uneven axes, groups"),
        pytest.param((2, 17, 9), 4, 2, 2, 1, id="one axis, two tiles of channels"),
        pytest.param((1, 3, 2, 3, 2), 2, 1, 1, 1, id="three axes"),
        pytest.param((1, 3, 3, 3), 2, 2, 6, 1, id="dilation beyond the outputs"),
    ],
)
def test_conv_second_moment(
    shape: tuple[int, ...],
    kernel: int,
    padding: int,
    dilation: int,
    groups: int,
    dtype: torch.dtype,
) -> None:
    x = random(*shape, dtype=dtype)
    geometry = conv_geometry(shape, kernel, 1, padding, dilation, groups)
    sizes = geometry.kernel, geometry.stride, geometry.padding, geometry.dilation
    exact = conv_second_moment_reference(x.double(), *sizes, groups, bias=True)
    moment = conv_second_moment(x, kernel, 1, padding, dilation, groups, bias=True)
    assert_equal_up_to_rounding(moment, exact)


def test_conv_second_moment_of_channels_last() -> None:
    x = random(2, 5, 6, 4).permute(0, 3, 1, 2)
    exact = conv_second_moment_reference(x.double(), (3, 2), (1, 1), (1, 0), (1, 1), 1)
    assert_equal_up_to_rounding(conv_second_moment(x, (3, 2), 1, (1, 0)), exact)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_of_one_tap_only_the_positions_it_sees_are_rows(groups: int, bias: bool) -> None:
    x = random(3, 4, 5, 7)
    sizes = (1, 1), (2, 3), (0, 0), (1, 1)
    assert explain(conv_second_moment, x, *sizes, groups).path == "triton"
    exact = conv_second_moment_reference(x.double(), *sizes, groups, bias=bias)
    assert_equal_up_to_rounding(conv_second_moment(x, *sizes, groups, bias=bias), exact)
