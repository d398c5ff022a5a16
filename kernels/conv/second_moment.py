"""The second moment of a convolution's patches: the statistic of its local Fisher.

With the weight as the matrix `W = weight.flatten(1)` and the patches as rows `u_i` in the same
order, a convolution is `y_i = W u_i`: the moment `sum_i u_i u_i^T` is to it what the second moment
of its rows is to a linear layer, every output position of every image being one more row.
"""

from collections.abc import Sequence

from torch import Tensor

from ..moments.rows import accumulation_dtype, check_out
from . import ops
from .geometry import conv_geometry


def conv_second_moment(  # noqa: PLR0913 - what conv2d takes, and bias and out
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    bias: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Sum the outer products of the patches of `x`: sums, no gradient, whatever autocast says.

    Args:
        x: floating `[N, C, *spatial]`, finite, one to three spatial axes, any strides, `N >= 0`.
        kernel_size: taps per spatial axis, at least 1; one int stands for all axes, as below.
        stride: positions from one patch to the next, at least 1.
        padding: zeros on either side, at least 0; may exceed the kernel.
        dilation: positions from one tap to the next, at least 1.
        groups: divisor of C; the channels of a group are consecutive.
        bias: whether every patch ends in a 1.
        out: buffer of the result's shape, dtype and device, to which the moment is ADDED.

    Returns:
        `out` or a new tensor: `[D, D]`, `D = C / groups * prod(kernel_size) + bias`, in the order
        of `weight.flatten(1)`, bias last; `[groups, D, D]` when `groups > 1`; exactly symmetric;
        float64 for float64 input, else float32, in which the products are taken and summed.

    Raises:
        KernelTypeError: a size is not an int, or `x` or `out` has a dtype that does not fit.
        KernelValueError: a rank, shape, size or device is impossible, or there is no output.

    Stride 1 takes one product of the channels for each offset between two taps, `prod(2 k - 1)`,
    half of them by symmetry, where the patches have `prod(k)^2`, and no memory for patches; other
    strides write the patches out, some images at a time. `explain` names the path.

    Source: Grosse and Martens 2016, arXiv 1602.01407. Test: tests/ops/test_conv_second_moment.py.
    """
    dtype = accumulation_dtype(x)
    geometry = conv_geometry(x.shape, kernel_size, stride, padding, dilation, groups)
    check_out(out, geometry.moment_shape(bias), dtype, x)
    sizes = (geometry.kernel, geometry.stride, geometry.padding, geometry.dilation)
    moment = ops.conv_second_moment(x.detach(), *map(list, sizes), groups, bias)
    return moment if out is None else out.add_(moment)
