"""Laws of `unit_second_moment`, in float64 against the written-out specification."""

import pytest
import torch

from sngd_kernels import (
    KernelError,
    KernelTypeError,
    KernelValueError,
    second_moment,
    unit_second_moment,
)
from sngd_kernels.reference import unit_second_moment_reference


def rows_and_weights(count: int, width: int, units: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, width).double(), torch.randn(units, count).double().T


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("units", [0, 1, 5])
@pytest.mark.parametrize("width", [0, 1, 63, 100])
@pytest.mark.parametrize("count", [0, 1, 63])
def test_equals_the_specification(count: int, width: int, units: int, bias: bool) -> None:
    x, weights = rows_and_weights(count, width, units)
    moments = unit_second_moment(x, weights, bias=bias)
    expected = unit_second_moment_reference(x, weights, bias=bias)
    torch.testing.assert_close(moments, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(moments, moments.mT)


def test_weights_of_one_give_the_second_moment() -> None:
    x, _ = rows_and_weights(63, 65, 1)
    moments = unit_second_moment(x, torch.ones(63, 2), bias=True)
    torch.testing.assert_close(moments, second_moment(x, bias=True).expand(2, 66, 66))


def test_units_are_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights = rows_and_weights(63, 65, 5)
    whole = unit_second_moment(x, weights, bias=True)
    monkeypatch.setattr("sngd_kernels.moments.rows.UNIT_BYTES", 2 * x.numel() * x.element_size())
    torch.testing.assert_close(unit_second_moment(x, weights, bias=True), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_widened_before_the_product(dtype: torch.dtype) -> None:
    x, weights = rows_and_weights(100, 63, 2)
    moments = unit_second_moment(x.to(dtype), weights.float())
    assert moments.dtype == torch.float32
    exact = unit_second_moment_reference(x.to(dtype).double(), weights)
    torch.testing.assert_close(moments.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_out_is_added_to_and_returned(bias: bool) -> None:
    x, weights = rows_and_weights(63, 65, 3)
    expected = unit_second_moment(x, weights, bias=bias)
    buffer = torch.ones_like(expected)
    assert unit_second_moment(x, weights, bias=bias, out=buffer) is buffer
    torch.testing.assert_close(buffer, 1 + expected)


def test_no_gradient_flows_and_autocast_changes_nothing() -> None:
    x, weights = torch.randn(63, 65).requires_grad_(), torch.rand(63, 2).requires_grad_()
    expected = unit_second_moment(x, weights)
    assert not expected.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(unit_second_moment(x, weights), expected)


X, NU = torch.ones(3, 2), torch.ones(3, 4)


@pytest.mark.parametrize(
    ("x", "weights", "out", "error", "message"),
    [
        (X.long(), NU, None, KernelTypeError, "int64"),
        (X, NU.long(), None, KernelTypeError, "weights has dtype torch.int64"),
        (X, NU[:2], None, KernelValueError, r"x has shape \(3, 2\) and weights \(2, 4\)"),
        (X[0], NU, None, KernelValueError, r"expected rows \[N, D\]"),
        (X, NU.to("meta"), None, KernelValueError, "weights is on meta, x is on cpu"),
        (X, NU, torch.ones(4, 3, 3), KernelValueError, r"expected \(4, 2, 2\)"),
    ],
)
def test_errors(
    x: torch.Tensor,
    weights: torch.Tensor,
    out: torch.Tensor | None,
    error: type[KernelError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        unit_second_moment(x, weights, out=out)
