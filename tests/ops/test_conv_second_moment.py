"""Laws of `conv_second_moment`, in float64 against patches cut out by one-hot convolutions."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sngd_kernels import conv_path, conv_second_moment
from sngd_kernels.conv.geometry import ConvGeometry, conv_geometry
from sngd_kernels.conv.patches import patch_moment_
from sngd_kernels.conv.taps import tap_moment_
from sngd_kernels.reference import conv_second_moment_reference

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
Algorithm = Callable[[torch.Tensor, torch.Tensor, ConvGeometry], torch.Tensor]

BY_TAPS_SHAPE = (16, 16, 28, 28)


def random_input(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def moment_by(algorithm: Algorithm, x: torch.Tensor, geometry: ConvGeometry) -> torch.Tensor:
    """Run one algorithm, whatever `conv_path` says, into a buffer full of NaN."""
    poisoned = torch.full((geometry.groups, geometry.width, geometry.width), torch.nan)
    moment = algorithm(poisoned.to(x.dtype), x, geometry)
    return moment[0] if geometry.groups == 1 else moment


def reference(x: torch.Tensor, geometry: ConvGeometry, bias: bool = False) -> torch.Tensor:
    sizes = geometry.kernel, geometry.stride, geometry.padding, geometry.dilation
    return conv_second_moment_reference(x, *sizes, geometry.groups, bias=bias)


def assert_equal_up_to_rounding(moment: torch.Tensor, expected: torch.Tensor) -> None:
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(moment, expected, rtol=0, atol=1e-12 * scale)


@st.composite
def convolutions(draw: st.DrawFn, max_stride: int) -> tuple[torch.Tensor, ConvGeometry]:
    """Draw a convolution by its output sizes, so that every draw is a possible one."""
    axes = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    sizes, kernel, stride, padding, dilation = [], [], [], [], []
    for _ in range(axes):
        taps = draw(st.integers(1, (6, 5, 3)[axes - 1]))
        step = draw(st.integers(1, max_stride))
        spacing = draw(st.integers(1, 3))
        margin = draw(st.integers(0, (7, 6, 3)[axes - 1]))
        outputs = draw(st.integers(1, 5))
        padded = spacing * (taps - 1) + 1 + step * (outputs - 1) + draw(st.integers(0, step - 1))
        sizes.append(max(1, padded - 2 * margin))
        kernel.append(taps)
        stride.append(step)
        padding.append(margin)
        dilation.append(spacing)
    shape = (draw(st.integers(0, 3)), groups * draw(st.integers(1, 3)), *sizes)
    return random_input(*shape), conv_geometry(shape, kernel, stride, padding, dilation, groups)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(convolutions(max_stride=1))
def test_taps_equal_the_specification(case: tuple[torch.Tensor, ConvGeometry]) -> None:
    x, geometry = case
    moment = moment_by(tap_moment_, x, geometry)
    assert_equal_up_to_rounding(moment, reference(x, geometry))
    assert torch.equal(moment, moment.mT)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(convolutions(max_stride=3), st.booleans())
def test_operation_equals_the_specification(
    case: tuple[torch.Tensor, ConvGeometry], bias: bool
) -> None:
    x, geometry = case
    sizes = geometry.kernel, geometry.stride, geometry.padding, geometry.dilation
    moment = conv_second_moment(x, *sizes, geometry.groups, bias=bias)
    assert_equal_up_to_rounding(moment, reference(x, geometry, bias))
    assert torch.equal(moment, moment.mT)


@pytest.mark.parametrize("algorithm", [tap_moment_, patch_moment_])
@pytest.mark.parametrize(
    ("shape", "kernel", "padding", "dilation", "groups"),
    [
        pytest.param((100, 7, 9, 9), 3, 1, 1, 1, id="odd channels"),
        pytest.param((2, 3, 4, 4), 7, 3, 1, 1, id="kernel larger than the input"),
        pytest.param((2, 3, 2, 2), 3, 9, 1, 1, id="padding larger than kernel and input"),
        pytest.param((2, 3, 8, 8), 4, 1, 1, 1, id="even kernel"),
        pytest.param((2, 3, 8, 8), 1, 0, 1, 1, id="one tap"),
        pytest.param((2, 6, 8, 8), 3, 1, 1, 6, id="depthwise"),
        pytest.param((2, 2, 11, 11), 3, 4, 5, 1, id="one output per dilation step"),
        pytest.param((2, 2, 5, 5), 5, 0, 1, 1, id="one output"),
        pytest.param((1, 63, 6, 5), (1, 3), (0, 1), (1, 2), 3, id="uneven axes"),
    ],
)
def test_corner_geometries(
    algorithm: Algorithm,
    shape: Sequence[int],
    kernel: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> None:
    x = random_input(*shape)
    geometry = conv_geometry(shape, kernel, 1, padding, dilation, groups)
    assert_equal_up_to_rounding(moment_by(algorithm, x, geometry), reference(x, geometry))


@pytest.mark.parametrize("algorithm", [tap_moment_, patch_moment_])
def test_blocks_of_images_add_up(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    x = random_input(5, 4, 9, 9)
    geometry = conv_geometry(x.shape, 2, 1, 0, 1, 2)
    whole = moment_by(algorithm, x, geometry)
    monkeypatch.setattr("sngd_kernels.conv.geometry.CPU_BLOCK_BYTES", 1)
    assert_equal_up_to_rounding(moment_by(algorithm, x, geometry), whole)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_order_of_entries_is_that_of_the_flattened_weight(
    axes: int, groups: int, bias: bool
) -> None:
    x = random_input(3, 4, *(5, 6, 7)[:axes])
    kernel, sizes = (2, 3, 2)[:axes], (2, 1, 1)
    weight = random_input(6, 4 // groups, *kernel)
    offset = random_input(6) if bias else None
    outputs = CONVOLUTIONS[axes](x, weight, offset, *sizes, groups=groups)
    rows = weight.flatten(1)
    if offset is not None:
        rows = torch.cat([rows, offset[:, None]], dim=1)
    moments = conv_second_moment(x, kernel, *sizes, groups, bias=bias)
    moments = moments if groups > 1 else moments[None]
    traces = [
        torch.trace(block @ moment @ block.T)
        for block, moment in zip(rows.chunk(groups), moments, strict=True)
    ]
    torch.testing.assert_close(sum(traces), outputs.square().sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "groups", "path"),
    [
        ((8, 64, 56, 56), 3, 1, 1, "taps"),
        (BY_TAPS_SHAPE, 3, 1, 1, "taps"),
        ((8, 3, 56, 56), 7, 1, 1, "taps"),
        ((16, 16, 500), 9, 1, 1, "taps"),
        ((8, 64, 56, 56), 3, 2, 1, "patches"),
        ((8, 64, 56, 56), 3, (1, 2), 1, "patches"),
        ((8, 64, 56, 56), 1, 1, 1, "patches"),
        ((8, 64, 28, 28), 3, 1, 64, "patches"),
        ((8, 3, 56, 56), 3, 1, 1, "patches"),
        ((8, 256, 7, 7), 3, 1, 1, "patches"),
        ((0, 64, 56, 56), 3, 1, 1, "patches"),
    ],
)
def test_path_by_shape(
    shape: Sequence[int], kernel: int, stride: int | Sequence[int], groups: int, path: str
) -> None:
    assert conv_path(shape, kernel, stride, 1, 1, groups) == path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("stride", [1, 2])
def test_dtypes_on_both_paths(dtype: torch.dtype, stride: int) -> None:
    x = random_input(*BY_TAPS_SHAPE, dtype=dtype)
    assert conv_path(x.shape, 3, stride, 1) == ("taps" if stride == 1 else "patches")
    moment = conv_second_moment(x, 3, stride, 1, bias=True)
    assert moment.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    geometry = conv_geometry(x.shape, 3, stride, 1, 1, 1)
    expected = reference(x.double(), geometry, bias=True)
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5  # sums may come in any order
    error = (moment.double() - expected).abs().max() / expected.abs().max()
    assert error.item() < tolerance


@pytest.mark.parametrize("stride", [1, 2])
def test_autocast_changes_nothing(stride: int) -> None:
    x = random_input(*BY_TAPS_SHAPE, dtype=torch.float32)
    expected = conv_second_moment(x, 3, stride, 1, bias=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(conv_second_moment(x, 3, stride, 1, bias=True), expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_out_is_added_to_and_returned(groups: int) -> None:
    first, second = random_input(2, 4, 7, 7), random_input(3, 4, 7, 7)
    buffer = conv_second_moment(first, 3, groups=groups, bias=True)
    assert conv_second_moment(second, 3, groups=groups, bias=True, out=buffer) is buffer
    together = conv_second_moment(torch.cat([first, second]), 3, groups=groups, bias=True)
    assert_equal_up_to_rounding(buffer, together)


@pytest.mark.parametrize("stride", [1, 2])
def test_any_strides(stride: int) -> None:
    x = random_input(28, 16, 56, 16).permute(3, 1, 0, 2)[..., ::2]
    assert x.shape == BY_TAPS_SHAPE
    expected = conv_second_moment(x.contiguous(), 3, stride, 1, bias=True)
    assert_equal_up_to_rounding(conv_second_moment(x, 3, stride, 1, bias=True), expected)


def test_no_gradient_flows() -> None:
    x = random_input(2, 3, 5, 5).requires_grad_()
    assert not conv_second_moment(x, 3).requires_grad
