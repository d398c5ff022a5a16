"""Laws of `sketch_basis`, `sketch` and `conv_sketch`, in float64 against the specification."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sngd_kernels import (
    KernelError,
    KernelTypeError,
    KernelValueError,
    conv_sketch,
    explain,
    sketch,
    sketch_basis,
)
from sngd_kernels.moments.sketch import TRACE
from sngd_kernels.moments.sketch_basis import basis_once
from sngd_kernels.reference import (
    conv_second_moment_reference,
    second_moment_reference,
    sketch_reference,
)

CPU = torch.device("cpu")


def basis(size: int, columns: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return sketch_basis(size, columns, dtype, CPU)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "columns"), [(1, 1), (2, 1), (7, 3), (193, 48), (785, 48), (97, 97)]
)
def test_a_basis_is_orthonormal(size: int, columns: int) -> None:
    omega = basis(size, columns)
    assert (omega.T @ omega - torch.eye(columns, dtype=torch.float64)).abs().max() < 1e-13


def test_a_basis_is_the_same_whoever_asks() -> None:
    expected = [[0.481588, 0.377964, 0.333269], [-0.118942, -0.377964, 0.481588]]
    torch.testing.assert_close(basis(7, 3)[:2], torch.tensor(expected).double(), rtol=0, atol=1e-6)
    first = basis(301, 5)
    basis_once.cache_clear()
    torch.manual_seed(3)
    with torch.inference_mode():
        again = basis(301, 5)
    assert torch.equal(again, first)
    assert not again.is_inference()
    assert torch.equal(basis(301, 5, torch.float32), first.float())
    assert torch.equal(basis(301, 7)[:, :5], first)


@pytest.mark.parametrize("number", range(5))
def test_no_input_has_a_special_place_in_it(number: int) -> None:
    """A single input, neighbours, a constant, an alternation and a cosine leave a fair share."""
    size, columns = 300, 30
    numbers = torch.arange(size).double()
    hostile = [
        (numbers == 7).double(),
        (numbers < 20).double(),
        torch.ones(size).double(),
        (-1.0) ** numbers,
        torch.cos(torch.pi * (numbers + 0.5) * 4 / size),
    ][number]
    share = (hostile @ basis(size, columns)).square().sum() / hostile.square().sum()
    assert 0.4 < share * size / columns < 2


def test_columns_beyond_the_size_are_refused() -> None:
    for columns in (0, 4):
        with pytest.raises(
            KernelValueError, match=rf"columns is {columns}; expected one in \[1, 3\]"
        ):
            basis(3, columns)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("count", "width", "columns"), [(0, 3, 2), (1, 5, 3), (33, 7, 7), (10, 1, 1)]
)
def test_rows_give_the_product_and_the_trace(
    count: int, width: int, columns: int, bias: bool
) -> None:
    x = torch.randn(count, width, dtype=torch.float64)
    omega = basis(width + bias, columns)
    expected = sketch_reference(second_moment_reference(x, bias=bias), omega)
    close(sketch(x, omega, bias=bias), expected)
    out = torch.ones_like(expected)
    assert sketch(x, omega, bias=bias, out=out) is out
    close(out, 1 + expected)
    groups = torch.stack([x, 2 * x])
    of_second = sketch_reference(second_moment_reference(2 * x, bias=bias), omega)
    close(sketch(groups, omega, bias=bias), torch.stack([expected, of_second]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_halves_are_widened_before_the_product(dtype: torch.dtype) -> None:
    x, omega = torch.randn(100, 31).to(dtype), basis(32, 5, torch.float32)
    found = sketch(x, omega, bias=True)
    assert found.dtype == torch.float32
    exact = sketch_reference(second_moment_reference(x.double(), bias=True), omega.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[Any, ...], int]] = [
    ((3, 4, 9), (3, 2, 1, 2), 1),
    ((2, 6, 8, 7), ((3, 2), (1, 2), (2, 0), (1, 3)), 3),
    ((2, 3, 7, 6), (3, 1, 1, 1), 1),
    ((1, 2, 5, 4, 6), ((2, 3, 1), 2, (1, 0, 2), 1), 2),
    ((4, 5, 3, 3), (1, 1, 0, 1), 1),
    ((0, 2, 5), (3, 1, 1, 1), 1),
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("shape", "sizes", "groups"), CONVOLUTIONS)
def test_the_probe_finds_what_patches_give(
    shape: tuple[int, ...], sizes: tuple[Any, ...], groups: int, bias: bool
) -> None:
    x, axes = torch.randn(shape, dtype=torch.float64), len(shape) - 2
    written = [size if isinstance(size, tuple) else (size,) * axes for size in sizes]
    moment = conv_second_moment_reference(x, *written, groups, bias=bias)
    moments = moment if groups > 1 else moment[None]
    omega = basis(moment.shape[-1], min(4, moment.shape[-1]))
    expected = torch.stack([sketch_reference(one, omega) for one in moments])
    expected = expected if groups > 1 else expected[0]
    out = torch.ones_like(expected)
    assert conv_sketch(x, omega, *sizes, groups, bias=bias, out=out) is out
    close(out, 1 + expected)
    close(conv_sketch(x, omega, *sizes, groups, bias=bias), expected)


def test_a_probe_leaves_the_settings_of_convolutions() -> None:
    settings = torch.backends.cudnn.conv, torch.backends.mkldnn.conv
    before = [setting.fp32_precision for setting in settings]
    conv_sketch(torch.randn(1, 2, 5).half(), basis(6, 2, torch.float32), 3)
    assert [setting.fp32_precision for setting in settings] == before


def test_no_gradient_and_no_autocast() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sketch(x, basis(3, 2, torch.float32))
    assert not found.requires_grad
    torch.testing.assert_close(found, sketch(x, basis(3, 2, torch.float32)))
    assert found[TRACE] == x.square().sum()


ROWS, OMEGA = torch.ones(2, 3), basis(3, 2, torch.float32)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: sketch(ROWS[0], OMEGA), KernelValueError, r"x has shape \(3,\).*flatten"),
        (lambda: sketch(ROWS.long(), OMEGA), KernelTypeError, "int64; expected float16"),
        (lambda: sketch(ROWS, OMEGA, bias=True), KernelValueError, r"omega.*expected \[4, l\]"),
        (lambda: sketch(ROWS, OMEGA.double()), KernelTypeError, "omega has dtype torch.float64"),
        (lambda: sketch(ROWS, OMEGA, out=ROWS), KernelValueError, r"out has.*expected \(4, 2\)"),
        (lambda: conv_sketch(ROWS, OMEGA, 1), KernelValueError, "spatial axes"),
        (lambda: conv_sketch(ROWS[None], OMEGA, 1), KernelValueError, r"expected \[2, l\]"),
    ],
)
def test_errors_say_what_was_expected(call: Any, error: type[KernelError], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_they_have_no_kernel_of_their_own() -> None:
    assert (
        str(explain(sketch, ROWS)) == "sketch: reference (two products of PyTorch's are the work)"
    )
