"""The sketch of the second moment of a convolution's patches: the convolution itself finds it."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from ..moments.rows import accumulation_dtype
from ..moments.sketch import TRACE, check_omega, new_or_checked
from ..precision import exact_convolutions
from .geometry import ConvGeometry, conv_geometry

CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)


def conv_sketch(  # noqa: PLR0913 - what conv2d takes, and omega, bias and out
    x: Tensor,
    omega: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    bias: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply the second moment of the patches of `x` by `omega`, without patches; add its trace.

    A convolution is linear in its weight, so with the columns of `omega` as the weights of l
    outputs, `y = conv(x, Omega)`, the weight's gradient where `y` has the gradient `y` is
    `sum_i u_i u_i^T Omega`: two calls of the convolution, whatever its stride and dilation. The
    trace is a convolution of the squares with ones.

    Args:
        x: floating `[N, C, *spatial]`, finite, one to three spatial axes, any strides, `N >= 0`.
        omega: `[D, l]`, as in `sketch`, in the order of `weight.flatten(1)`, the bias last.
        kernel_size: taps per spatial axis, at least 1; one int stands for all axes, as below.
        stride: positions from one patch to the next, at least 1.
        padding: zeros on either side, at least 0.
        dilation: positions from one tap to the next, at least 1.
        groups: divisor of C; the channels of a group are consecutive. All have the same `omega`.
        bias: whether every patch ends in a 1.
        out: buffer of the result's shape, dtype and device, to which the sketch is ADDED.

    Returns:
        `out` or a new tensor, as `sketch`: `[D + 1, l]`, or `[groups, D + 1, l]` where
        `groups > 1`; float64 for float64 input, else float32.

    Raises:
        KernelTypeError: a size is not an int, or `x`, `omega` or `out` has a dtype that does not
            fit.
        KernelValueError: a rank, shape, size or device is impossible, or there is no output.

    Two thirds of a training step of a convolution with l outputs.

    Source: docs/method.md, sketches. Checked by tests/ops/test_sketch.py.
    """
    dtype = accumulation_dtype(x)
    geometry = conv_geometry(x.shape, kernel_size, stride, padding, dilation, groups)
    size, columns = geometry.width + int(bias), omega.shape[-1]
    check_omega(omega, size, dtype)
    shape = (size + 1, columns) if groups == 1 else (groups, size + 1, columns)
    out = new_or_checked(out, shape, dtype, x)
    if x.shape[0] == 0:
        return out
    images = x.detach().to(dtype)
    with exact_convolutions(x.device):
        seen, moved = _probe(images, omega, geometry, bias)
        squares = images.square().unflatten(1, (groups, -1)).sum(2)
        ones = squares.new_ones(groups, 1, *geometry.kernel)
        traces = _convolve(squares, ones, None, geometry)
    total = out if groups > 1 else out[None]
    total[:, : geometry.width] += moved.unflatten(0, (groups, columns)).flatten(2).mT
    if bias:
        total[:, geometry.width] += seen.transpose(0, 1).flatten(1).sum(1).view(groups, columns)
    count = len(x) * prod(geometry.outputs) if bias else 0
    total[TRACE] += traces.transpose(0, 1).flatten(1).sum(1) + count
    return out


def _probe(
    images: Tensor, omega: Tensor, geometry: ConvGeometry, bias: bool
) -> tuple[Tensor, Tensor]:
    """Return the outputs for the weights `omega`, and the gradient of `<y, y>` by them, halved."""
    groups, columns = geometry.groups, omega.shape[1]
    weight = omega[: geometry.width].T.reshape(columns, geometry.channels, *geometry.kernel)
    weight = weight.repeat(groups, *(1,) * (weight.dim() - 1))
    seen = _convolve(images, weight, omega[-1].repeat(groups) if bias else None, geometry)
    _, moved, _ = torch.ops.aten.convolution_backward(
        seen,
        images,
        weight,
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        (0,) * len(geometry.kernel),
        groups,
        (False, True, False),
    )
    return seen, moved


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """Convolve with the geometry's sizes."""
    convolve = CONVOLUTIONS[len(geometry.kernel) - 1]
    sizes = (geometry.stride, geometry.padding, geometry.dilation)
    outputs: Tensor = convolve(x, weight, bias, *sizes, geometry.groups)
    return outputs
