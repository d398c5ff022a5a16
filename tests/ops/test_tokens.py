"""Laws of `token_counts` and `bag_squared_sum` against the written-out specifications."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sngd_kernels import (
    KernelError,
    KernelTypeError,
    KernelValueError,
    bag_squared_sum,
    token_counts,
)
from sngd_kernels.moments.sums import scattered_counts
from sngd_kernels.reference import bag_squared_sum_reference, token_counts_reference

TOKENS = torch.tensor([3, 0, 3, 3, 6, 1])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("padding_idx", [None, 0, 3, 6])
def test_counts_equal_the_specification(padding_idx: int | None, dtype: torch.dtype) -> None:
    counts = token_counts(TOKENS.to(dtype), 7, padding_idx=padding_idx)
    assert torch.equal(counts, token_counts_reference(TOKENS, 7, padding_idx=padding_idx))
    none = token_counts(TOKENS[:0].to(dtype), 7, padding_idx=padding_idx)
    assert torch.equal(none, torch.zeros(7, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_counts_are_added_to_a_buffer(dtype: torch.dtype) -> None:
    buffer = torch.ones(14, dtype=dtype)[::2]
    assert token_counts(TOKENS[::2], 7, out=buffer) is buffer
    assert torch.equal(buffer, 1 + token_counts_reference(TOKENS[::2], 7).to(dtype))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_device_that_is_not_waited_for_counts_alike(dtype: torch.dtype) -> None:
    assert torch.equal(scattered_counts(TOKENS.to(dtype), 7), token_counts_reference(TOKENS, 7))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bags_equal_the_specification(dtype: torch.dtype) -> None:
    bags = torch.tensor([0, 0, 0, 4, 4, 1], dtype=dtype)  # some are empty, one holds 3 twice
    weights = torch.randn(6, dtype=torch.float64)
    squares = bag_squared_sum(bags, TOKENS.to(dtype), weights, 7)
    exact = bag_squared_sum_reference(bags, TOKENS, weights, 7)
    torch.testing.assert_close(squares, exact, rtol=1e-13, atol=1e-15)
    buffer = torch.ones(7, dtype=torch.float64)
    assert bag_squared_sum(bags, TOKENS.to(dtype), weights, 7, out=buffer) is buffer
    torch.testing.assert_close(buffer, 1 + exact, rtol=1e-13, atol=1e-15)


def test_no_bag_holds_nothing() -> None:
    nothing = TOKENS[:0]
    assert torch.equal(bag_squared_sum(nothing, nothing, torch.ones(0), 3), torch.zeros(3))


def test_weights_of_half_precision_are_widened() -> None:
    weights = torch.full((6,), 300.0, dtype=torch.float16)
    squares = bag_squared_sum(torch.zeros(6, dtype=torch.int64), TOKENS, weights, 7)
    assert squares.dtype == torch.float32
    assert squares[3].item() == 900.0**2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: token_counts(TOKENS, 6), KernelValueError, r"hold 6; expected .*\[0, 6\)"),
        (lambda: token_counts(TOKENS - 1, 7), KernelValueError, r"hold -1; expected .*\[0, 7\)"),
        (lambda: token_counts(TOKENS.float(), 7), KernelTypeError, r"float32.*tokens\.long"),
        (lambda: token_counts(TOKENS[None], 7), KernelValueError, r"\(1, 6\).*flatten"),
        (lambda: token_counts(TOKENS[:0], 0), KernelValueError, "entries is 0; expected at least"),
        (lambda: token_counts(TOKENS, 7, padding_idx=7), KernelValueError, "padding_idx is 7"),
        (lambda: token_counts(TOKENS, 7, out=torch.ones(6)), KernelValueError, r"expected \(7,\)"),
        (lambda: bag_squared_sum(TOKENS, TOKENS, TOKENS, 7), KernelTypeError, "int64; expected fl"),
        (
            lambda: bag_squared_sum(TOKENS.float(), TOKENS, torch.ones(6), 7),
            KernelTypeError,
            r"bags has dtype torch\.float32",
        ),
        (
            lambda: bag_squared_sum(TOKENS[:5], TOKENS, torch.ones(6), 7),
            KernelValueError,
            r"bags \(5,\) on cpu.*do not fit; expected \[M\] each",
        ),
    ],
)
def test_errors_name_value_expectation_and_remedy(
    call: Any, error: type[KernelError], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_counting_needs_no_gradient_of_the_weights() -> None:
    weights = torch.ones(6, requires_grad=True)
    squares: Tensor = bag_squared_sum(TOKENS, TOKENS, weights, 7)
    assert not squares.requires_grad
