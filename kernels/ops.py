"""Registration with torch.library: what torch.compile, fake tensors and vmap see of each operation.

One implementation serves every device: it asks `dispatch` for the path. Arguments were checked by
the public functions. Nothing here has a gradient: these are statistics and their roots.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from .batching import one_by_one, together
from .conv_geometry import conv_geometry
from .conv_moment import choose_conv, conv_moment, finish_conv_moment, pointwise_rows
from .dispatch import choose, launcher
from .factors import flaws, invert_factor
from .products import product_nt
from .rows import ACCUMULATION_DTYPE, row_moment, unit_moment


@custom_op("sngd_kernels::second_moment", mutates_args=())
def second_moment(x: Tensor, bias: bool) -> Tensor:
    """Compute `x~^T x~` of rows `[N, D]`."""
    if choose("second_moment", x).path == "triton":
        moment: Tensor = launcher("second_moment", x)(x, bias=bias)
        return moment
    return row_moment(x, bias)


@second_moment.register_fake
def _(x: Tensor, bias: bool) -> Tensor:
    size = x.shape[1] + int(bias)
    return x.new_empty((size, size), dtype=ACCUMULATION_DTYPE[x.dtype])


@custom_op("sngd_kernels::add_second_moment_", mutates_args=("out",))
def add_second_moment_(out: Tensor, x: Tensor, bias: bool) -> None:
    """Add `x~^T x~` of rows `[N, D]` to `out`."""
    if choose("second_moment", x).path == "triton":
        launcher("second_moment", x)(x, bias=bias, out=out)
    else:
        out.add_(row_moment(x, bias))


@custom_op("sngd_kernels::unit_second_moment", mutates_args=())
def unit_second_moment(x: Tensor, weights: Tensor, bias: bool) -> Tensor:
    """Compute one weighted moment of rows `[N, D]` for each column of `weights` `[N, O]`."""
    if choose("unit_second_moment", x).path == "triton" and weights.numel():
        moment: Tensor = launcher("unit_second_moment", x)(x, weights, bias=bias)
        return moment
    return unit_moment(x, weights, bias)


@unit_second_moment.register_fake
def _(x: Tensor, weights: Tensor, bias: bool) -> Tensor:
    size = x.shape[1] + int(bias)
    return x.new_empty((weights.shape[1], size, size), dtype=ACCUMULATION_DTYPE[x.dtype])


@custom_op("sngd_kernels::add_unit_second_moment_", mutates_args=("out",))
def add_unit_second_moment_(out: Tensor, x: Tensor, weights: Tensor, bias: bool) -> None:
    """Add one weighted moment for each column of `weights` to `out`."""
    if choose("unit_second_moment", x).path == "triton" and weights.numel():
        launcher("unit_second_moment", x)(x, weights, bias=bias, out=out)
    else:
        out.add_(unit_moment(x, weights, bias))


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


@custom_op("sngd_kernels::cholesky_inverse", mutates_args=())
def cholesky_inverse(matrices: Tensor, damping: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """Factorise and invert `matrices` `[B, D, D]`; return the inverses and what is wrong `[B]`."""
    if choose("cholesky_inverse", matrices).path == "triton":
        info = flaws(matrices)
        inverse = launcher("cholesky_inverse", matrices)(matrices, damping, info, bias=bias)
        return inverse, info
    return invert_factor(matrices, damping, bias)


@cholesky_inverse.register_fake
def _(matrices: Tensor, damping: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    inverse = matrices.new_empty(matrices.shape)
    return inverse, matrices.new_empty(matrices.shape[:1], dtype=torch.int32)


@custom_op("sngd_kernels::matmul_nt", mutates_args=())
def matmul_nt(
    a: Tensor,
    b: Tensor,
    addend: Tensor | None,
    alpha: float,
    beta: float,
    gamma: float,
    symmetric: bool,
) -> tuple[Tensor, Tensor]:
    """Compute `alpha A B^T + beta D + gamma I` and its Frobenius norm, `[B, M, N]` and `[B]`."""
    if choose("matmul_nt", a).path == "triton" and b.numel():
        product: tuple[Tensor, Tensor] = launcher("matmul_nt", a)(
            a, b, addend, alpha=alpha, beta=beta, gamma=gamma, symmetric=symmetric
        )
        return product
    return product_nt(a, b, addend, alpha, beta, gamma, symmetric)


@matmul_nt.register_fake
def _(a: Tensor, b: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape[0], a.shape[1], b.shape[1]), a.new_empty(a.shape[0])


for _operation in (
    second_moment,
    add_second_moment_,
    unit_second_moment,
    add_unit_second_moment_,
    conv_second_moment,
):
    _operation.register_vmap(one_by_one(_operation))
for _operation in (cholesky_inverse, matmul_nt):
    _operation.register_vmap(together(_operation))
