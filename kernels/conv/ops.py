"""Registration with torch.library of the patch moment: for a graph, fakes and vmap."""

import torch
from torch import Tensor
from torch.library import custom_op

from ..batching import one_by_one
from ..dispatch import launcher
from ..moments.rows import ACCUMULATION_DTYPE
from .geometry import conv_geometry
from .moment import choose_conv, conv_moment, finish_conv_moment, pointwise_rows


@custom_op("sngd_kernels::conv_second_moment", mutates_args=())
def conv_second_moment(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    bias: bool,
) -> Tensor:
    """Compute the second moment of the patches of `x` `[N, C, *spatial]`."""
    geometry = conv_geometry(x.shape, kernel_size, stride, padding, dilation, groups)
    if choose_conv(x, geometry).path == "triton":
        # One tap has no offsets to share. As a convolution it was a part of the 54 ms that tap
        # products took in an observed step of ResNet-50 on a GPU (decision 18).
        if geometry.is_pointwise:
            rows = pointwise_rows(x, geometry)
            launch = launcher("second_moment", x)
            moments = torch.stack([launch(of_group, bias=bias) for of_group in rows])
            return moments.view(geometry.moment_shape(bias))
        size = geometry.width + int(bias)
        moment = x.new_empty((geometry.groups, size, size), dtype=torch.float32)
        patch_entries = moment[:, : geometry.width, : geometry.width]
        launcher("conv_second_moment", x)(patch_entries, x, geometry)
        return finish_conv_moment(moment, x, geometry, bias)
    return conv_moment(x, geometry, bias)


@conv_second_moment.register_fake
def _(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    bias: bool,
) -> Tensor:
    geometry = conv_geometry(x.shape, kernel_size, stride, padding, dilation, groups)
    return x.new_empty(geometry.moment_shape(bias), dtype=ACCUMULATION_DTYPE[x.dtype])


conv_second_moment.register_vmap(one_by_one(conv_second_moment))
