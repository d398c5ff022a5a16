"""What every second moment shares: accepted rows, their product, the bias entries, the buffer."""

import torch
from torch import Tensor

from ..errors import KernelTypeError, KernelValueError
from ..precision import exact_products

# Columns in a block row of a symmetric product. Measured on one AVX-512 thread, D = 256 to 2304:
# 64 and 128 tie in the product, 64 mirrors up to 1.5 times faster; 256 is 10 % to 40 % slower.
PANEL = 64

# Weighted rows laid out at a time for the moments of units.
UNIT_BYTES = 32 * 2**20

# A product of halves is exact in float32, and may be infinite in float16: that of 300 with itself.
ACCUMULATION_DTYPE = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """Name the dtype in which products of `x` are summed; reject integer and complex input."""
    if x.dtype not in ACCUMULATION_DTYPE:
        raise KernelTypeError(
            f"x has dtype {x.dtype}; expected float16, bfloat16, float32 or float64: "
            "convert it first, for example with x.float()"
        )
    return ACCUMULATION_DTYPE[x.dtype]


def check_out(out: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> None:
    """Reject a buffer that a moment of `shape` and `dtype` on the device of `like` cannot join."""
    if out is None:
        return
    if tuple(out.shape) != shape:
        raise KernelValueError(
            f"out has shape {tuple(out.shape)}; expected {shape}: "
            "allocate it with that shape, or leave out= away"
        )
    if out.dtype != dtype:
        raise KernelTypeError(
            f"out has dtype {out.dtype}; expected {dtype} for x of dtype {like.dtype}: "
            "allocate it with that dtype"
        )
    if out.device != like.device:
        raise KernelValueError(
            f"out is on {out.device}, x is on {like.device}; expected one device: move one of them"
        )


def row_moment(x: Tensor, bias: bool) -> Tensor:
    """Return the second moment `[D + bias, D + bias]` of rows `x` `[N, D]`, exactly symmetric."""
    count, width = x.shape
    rows = x.to(ACCUMULATION_DTYPE[x.dtype])
    if rows.device.type == "cpu" and width <= 2 * PANEL:
        # In as few calls as there can be, which is what small matrices take their time for.
        with_ones = torch.cat([rows, rows.new_ones(count, 1)], 1) if bias else rows
        product = rows.new_empty(width + bias, width + bias)
        with exact_products(x.device):
            torch.mm(with_ones.mT, with_ones, out=product)  # with `out` no autocast narrows it
        return (product + product.mT).mul_(0.5)
    rows = rows.unsqueeze(0)
    moment = rows.new_empty(1, width + bias, width + bias)
    with exact_products(x.device):
        complete_(upper_product_(moment[:, :width, :width], rows))
        if bias:
            append_bias_(moment, rows.sum(1), count)
    return moment[0]


def unit_moment(x: Tensor, weights: Tensor, bias: bool) -> Tensor:
    """Return one second moment of rows `x` `[N, D]` for each column of `weights` `[N, O]`.

    Units are taken a few at a time: their weighted rows stay below `UNIT_BYTES`.

    Returns:
        `[O, D + bias, D + bias]`, exactly symmetric.
    """
    width, units = x.shape[1], weights.shape[1]
    rows = x.to(ACCUMULATION_DTYPE[x.dtype])
    weights = weights.to(rows.dtype)
    moments = rows.new_empty(units, width + bias, width + bias)
    at_once = max(1, UNIT_BYTES // max(1, rows.numel() * rows.element_size()))
    with exact_products(x.device):
        for some, columns in zip(moments.split(at_once), weights.split(at_once, 1), strict=True):
            weighted = columns.T[:, :, None] * rows
            upper_product_(some[:, :width, :width], weighted, rows.expand_as(weighted))
        complete_(moments[:, :width, :width])
        if bias:
            append_bias_(moments, weights.T @ rows, weights.sum(0))
    return moments


def upper_product_(
    out: Tensor, rows: Tensor, other: Tensor | None = None, *, alpha: float = 1, add: bool = False
) -> Tensor:
    """Write the upper triangle of `alpha rows^T other` into `out`, or add it to what is there.

    On a CPU only the blocks on and above the diagonal are multiplied, one block row at a time; the
    rest of `out` is arbitrary until `mirror_`.

    Args:
        out: `[groups, D, D]`, any strides.
        rows: `[groups, N, D]` of the same dtype and device, any strides.
        other: the same, where the product is symmetric without being that of `rows` with itself.
        alpha: factor of the product.
        add: whether `out` already holds a moment to add to.

    Returns:
        `out`.
    """
    right = rows if other is None else other
    for start, stop in _panels(rows):
        panel = out[:, start:stop, start:]
        panel.baddbmm_(rows[..., start:stop].mT, right[..., start:], beta=int(add), alpha=alpha)
    return out


def complete_(product: Tensor) -> Tensor:
    """Make what `upper_product_` wrote, `[groups, D, D]`, whole and exactly symmetric."""
    if len(_panels(product)) > 1:
        return mirror_(product)
    # One panel is the whole product: the mean of both triangles takes the fewest calls, and of
    # those small matrices take most of their time.
    return product.copy_((product + product.mT).mul_(0.5))


def mirror_(matrices: Tensor) -> Tensor:
    """Copy the upper triangle of each of `matrices` `[groups, D, D]` onto the lower one."""
    for start, stop in _panels(matrices):
        diagonal = matrices[:, start:stop, start:stop]
        # A block on the diagonal was multiplied as a whole, and may be asymmetric by rounding.
        diagonal.copy_(diagonal.triu() + diagonal.triu(1).mT)
        matrices[:, stop:, start:stop] = matrices[:, start:stop, stop:].mT
    return matrices


def append_bias_(moment: Tensor, column_sums: Tensor, count: int | Tensor) -> Tensor:
    """Fill the last row and column of `moment`, which belong to the column of ones.

    Args:
        moment: `[groups, D + 1, D + 1]`.
        column_sums: `[groups, D]`, the sum of the rows.
        count: number of rows, the entry in the corner; or `[groups]`, the sums of their weights.

    Returns:
        `moment`.
    """
    moment[:, -1, :-1] = column_sums
    moment[:, :-1, -1] = column_sums
    moment[:, -1, -1] = count
    return moment


def _panels(matrix: Tensor) -> list[tuple[int, int]]:
    """Cut the columns into block rows on a CPU; elsewhere a launch costs more than it saves."""
    width = matrix.shape[-1]
    size = PANEL if matrix.device.type == "cpu" else max(width, 1)
    return [(start, min(start + size, width)) for start in range(0, width, size)]
