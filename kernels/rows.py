"""What every second moment shares: accepted rows, their product, the bias entries, the buffer."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .errors import KernelTypeError, KernelValueError

# Columns in a block row of a symmetric product. Measured on one AVX-512 thread, D = 256 to 2304:
# 64 and 128 tie in the product, 64 mirrors up to 1.5 times faster; 256 is 10 % to 40 % slower.
PANEL = 64

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


def autocast_off(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast cannot lower the precision of a product."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def upper_product_(out: Tensor, rows: Tensor, *, add: bool = False) -> Tensor:
    """Write the upper triangle of `rows^T rows` into `out`, or add it to what is there.

    On a CPU only the blocks on and above the diagonal are multiplied, one block row at a time; the
    rest of `out` is arbitrary until `mirror_`.

    Args:
        out: `[groups, D, D]`, any strides.
        rows: `[groups, N, D]` of the same dtype and device, any strides.
        add: whether `out` already holds a moment to add to.

    Returns:
        `out`.
    """
    for start, stop in _panels(rows):
        panel = out[:, start:stop, start:]
        panel.baddbmm_(rows[..., start:stop].mT, rows[..., start:], beta=int(add))
    return out


def mirror_(matrices: Tensor) -> Tensor:
    """Copy the upper triangle of each of `matrices` `[groups, D, D]` onto the lower one."""
    for start, stop in _panels(matrices):
        diagonal = matrices[:, start:stop, start:stop]
        diagonal.copy_(diagonal.triu() + diagonal.triu(1).mT)
        matrices[:, stop:, start:stop] = matrices[:, start:stop, stop:].mT
    return matrices


def append_bias_(moment: Tensor, column_sums: Tensor, count: int) -> Tensor:
    """Fill the last row and column of `moment`, which belong to the column of ones.

    Args:
        moment: `[groups, D + 1, D + 1]`.
        column_sums: `[groups, D]`, the sum of the rows.
        count: number of rows, the entry in the corner.

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
