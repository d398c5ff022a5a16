"""The path of a call, told without making it."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .conv.geometry import conv_geometry
from .conv.moment import choose_conv
from .conv.second_moment import conv_second_moment
from .dispatch import LIMITS, WITHOUT_KERNEL, Choice, choose
from .errors import KernelValueError
from .moments.channel_second_moment import channel_second_moment
from .moments.second_moment import second_moment
from .moments.squared_sum import squared_sum
from .moments.unit_second_moment import unit_second_moment
from .roots.cholesky_inverse import cholesky_inverse, cholesky_inverse_ex
from .roots.matmul_nt import matmul_nt

OPERATIONS: dict[str, str] = {
    function.__name__: op
    for function, op in (
        (second_moment, "second_moment"),
        (conv_second_moment, "conv_second_moment"),
        (unit_second_moment, "unit_second_moment"),
        (squared_sum, "squared_sum"),
        (channel_second_moment, "channel_second_moment"),
        (cholesky_inverse, "cholesky_inverse"),
        (cholesky_inverse_ex, "cholesky_inverse"),
        (matmul_nt, "matmul_nt"),
    )
}


def explain(op: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Choice:
    """Tell which path `op(*args, **kwargs)` would take, and why: print it.

    `explain(second_moment, x)` prints as `second_moment: reference (x is on cpu)`.

    Args:
        op: an operation of this package, or its name.
        args: what it would be called with, the tensors first.
        kwargs: the same.

    Returns:
        The choice: `op`, `path` (`"triton"` or `"reference"`) and `reason`.

    Raises:
        KernelValueError: `op` is no operation with a path, or SNGD_KERNELS has another value.
        KernelUnavailableError: SNGD_KERNELS=triton forces a kernel that this call cannot have.

    Checked by tests/ops/test_explain.py.
    """
    name = op if isinstance(op, str) else op.__name__
    if name in WITHOUT_KERNEL:
        return Choice(name, "reference", WITHOUT_KERNEL[name])
    if name not in OPERATIONS:
        raise KernelValueError(
            f"op is {name!r}; expected one of {', '.join([*LIMITS, *WITHOUT_KERNEL])}: the roots "
            "by iteration are made of them"
        )
    # Its path depends on the sizes of the convolution, which `choose` does not see.
    if name == "conv_second_moment":
        return _explain_convolution(*args, **kwargs)
    tensor: Tensor = args[0]
    return choose(OPERATIONS[name], tensor)


def _explain_convolution(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    **_: Any,
) -> Choice:
    return choose_conv(x, conv_geometry(x.shape, kernel_size, stride, padding, dilation, groups))
