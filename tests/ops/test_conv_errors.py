"""Errors of `conv_second_moment`: each says the value, what was expected and what to do."""

from typing import Any

import pytest
import torch

from sngd_kernels import (
    KernelError,
    KernelTypeError,
    KernelValueError,
    conv_path,
    conv_second_moment,
)

IMAGES = torch.ones(2, 4, 5, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kernel_size": 0}, KernelValueError, "kernel_size is 0; expected an int, or 2 of them"),
        ({"kernel_size": (3, 3, 3)}, KernelValueError, r"kernel_size is \(3, 3, 3\)"),
        ({"kernel_size": ()}, KernelValueError, r"kernel_size is \(\)"),
        ({"kernel_size": 3.0}, KernelTypeError, "kernel_size is 3.0; .*write the numbers out"),
        ({"stride": 0}, KernelValueError, "stride is 0; .*at least 1"),
        ({"padding": -1}, KernelValueError, "padding is -1; .*at least 0"),
        ({"padding": "same"}, KernelTypeError, "padding is 'same'; .*write the numbers out"),
        ({"dilation": (1, 0)}, KernelValueError, r"dilation is \(1, 0\)"),
        ({"groups": 3}, KernelValueError, "4 channels and groups is 3; expected a divisor"),
        ({"groups": 0}, KernelValueError, "groups is 0"),
        ({"dilation": 3}, KernelValueError, r"spans 7 \(3 taps, dilation 3\).*enlarge"),
    ],
)
def test_geometry(arguments: dict[str, Any], error: type[KernelError], message: str) -> None:
    arguments = {"kernel_size": 3, **arguments}
    with pytest.raises(error, match=message):
        conv_second_moment(IMAGES, **arguments)
    with pytest.raises(error, match=message):
        conv_path(IMAGES.shape, **arguments)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (IMAGES.long(), KernelTypeError, r"int64.*x\.float\(\)"),
        (IMAGES.to(torch.complex64), KernelTypeError, "complex64"),
        (torch.ones(4, 5), KernelValueError, r"\(4, 5\); expected \[N, C, \*spatial\]"),
        (torch.ones(1, 1, 2, 2, 2, 2), KernelValueError, "1, 2 or 3 spatial axes"),
    ],
)
def test_input(x: torch.Tensor, error: type[KernelError], message: str) -> None:
    with pytest.raises(error, match=message):
        conv_second_moment(x, 1)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (torch.zeros(4, 4), KernelValueError, r"\(4, 4\); expected \(2, 3, 3\)"),
        (torch.zeros(2, 3, 3, dtype=torch.float64), KernelTypeError, "float64.*float32"),
        (torch.zeros(2, 3, 3, device="meta"), KernelValueError, "meta.*cpu"),
    ],
)
def test_out(out: torch.Tensor, error: type[KernelError], message: str) -> None:
    with pytest.raises(error, match=message):
        conv_second_moment(IMAGES, 1, groups=2, bias=True, out=out)
