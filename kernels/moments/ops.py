"""Registration with torch.library of moments of rows: for torch.compile, fake tensors and vmap.

One implementation serves every device: it asks `dispatch` for the path. Arguments were checked by
the public functions. Nothing here has a gradient: these are statistics.
"""

from torch import Tensor
from torch.library import custom_op

from ..batching import one_by_one
from ..dispatch import choose, launcher
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
    # `choose` has seen that there are rows; the launcher takes no layer without units either.
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


for _operation in (
    second_moment,
    add_second_moment_,
    unit_second_moment,
    add_unit_second_moment_,
):
    _operation.register_vmap(one_by_one(_operation))
