"""Which path a call takes, Triton or PyTorch's own operations: the one place that decides."""

import importlib
import importlib.util
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .errors import KernelUnavailableError, KernelValueError

Path = Literal["triton", "reference"]

VARIABLE = "SNGD_KERNELS"
HALVES_AND_FLOAT32 = (torch.float16, torch.bfloat16, torch.float32)


class Limits(NamedTuple):
    """Say what a kernel takes: other dtypes and larger matrices go to PyTorch's own operations.

    Matrices above `pays_up_to` too, unless the kernels are forced: PyTorch is faster there.
    """

    dtypes: tuple[torch.dtype, ...]
    largest: int | None = None
    pays_up_to: int | None = None


# The registers of one program hold a matrix of 128 columns; above 64 PyTorch's own calls were
# faster on an H200 (docs/kernels/cholesky_inverse.md).
LIMITS = {
    "second_moment": Limits(HALVES_AND_FLOAT32),
    "conv_second_moment": Limits(HALVES_AND_FLOAT32),
    "unit_second_moment": Limits(HALVES_AND_FLOAT32),
    "squared_sum": Limits(HALVES_AND_FLOAT32),
    "channel_second_moment": Limits(HALVES_AND_FLOAT32),
    "cholesky_inverse": Limits((torch.float32,), largest=128, pays_up_to=64),
    "matmul_nt": Limits((torch.float32,)),
}

WITHOUT_KERNEL = {
    "token_counts": "PyTorch's count is one kernel already",
    "bag_squared_sum": "PyTorch's sort and scattered sums are the work",
    "diagonal_root_ex": "PyTorch's pointwise call is one kernel already",
    "sketch": "two products of PyTorch's are the work",
    "conv_sketch": "two calls of PyTorch's convolution are the work",
    "sketch_root_ex": "its products and factors are torch.linalg's",
    "eigen_root_ex": "an eigendecomposition is torch.linalg's",
}
"""Operations that take PyTorch's own calls on every device, whatever SNGD_KERNELS says, and why."""


@dataclass(frozen=True)
class Choice:
    """Say which path an operation takes for one set of arguments, and why.

    Attributes:
        op: name of the operation.
        path: `"triton"` for a kernel, `"reference"` for PyTorch's own operations.
        reason: what decided.
    """

    op: str
    path: Path
    reason: str

    def __str__(self) -> str:
        """Write one line: operation, path, reason."""
        return f"{self.op}: {self.path} ({self.reason})"


def choose(op: str, x: Tensor, obstacle: str | None = None) -> Choice:
    """Choose the path of `op` for its first tensor `x`.

    Triton is taken where a kernel exists for the dtype and size and the device can run it; the
    variable SNGD_KERNELS forces `reference` or `triton`. An empty tensor needs no kernel.

    Args:
        op: a key of `LIMITS`.
        x: the tensor whose device, dtype and last axis decide.
        obstacle: what else stands in the way of the kernel, if anything.

    Returns:
        The choice with its reason.

    Raises:
        KernelValueError: SNGD_KERNELS is neither.
        KernelUnavailableError: SNGD_KERNELS=triton, and there is no kernel or no device for it.
    """
    setting = os.environ.get(VARIABLE, "")
    if setting not in ("", "reference", "triton"):
        raise KernelValueError(
            f"{VARIABLE} is {setting!r}; expected reference or triton: unset it to let "
            "device, dtype and size decide"
        )
    if setting == "reference":
        return Choice(op, "reference", f"{VARIABLE}=reference")
    if x.numel() == 0:
        return Choice(op, "reference", "nothing to compute")
    forced = setting == "triton"
    found = obstacle or _limit(op, x, forced=forced) or _missing(x, forced=forced)
    if found is None:
        return Choice(op, "triton", f"{VARIABLE}=triton" if setting else f"x is on {x.device}")
    if setting == "triton":
        raise KernelUnavailableError(
            f"{VARIABLE}=triton, but {op} cannot take its kernel: {found}; expected a case that "
            f"has one: unset {VARIABLE} to fall back on PyTorch's own operations"
        )
    return Choice(op, "reference", found)


def launcher(op: str, x: Tensor) -> Callable[..., Any]:
    """Return the launcher of `op` for the device of `x`; the first call imports Triton."""
    # Not at the top of the file: without Triton or without a GPU nothing of it is imported, and so
    # nothing fails.
    module = importlib.import_module(f"sngd_kernels.gpu.{op}")
    launch: Callable[..., Any] = getattr(module, f"launch_{op}")

    def launch_on_device(*args: Any, **kwargs: Any) -> Any:
        with _device_guard(x):
            return launch(*args, **kwargs)

    return launch_on_device


def _limit(op: str, x: Tensor, *, forced: bool) -> str | None:
    """Name the dtype or the size for which there is no kernel, or, not forced, no gain."""
    limits = LIMITS[op]
    if x.dtype not in limits.dtypes:
        return f"no kernel for {x.dtype}"
    if limits.largest is not None and x.shape[-1] > limits.largest:
        return f"D = {x.shape[-1]} is above {limits.largest}"
    if limits.pays_up_to is not None and x.shape[-1] > limits.pays_up_to and not forced:
        return f"D = {x.shape[-1]} is above {limits.pays_up_to}, where PyTorch's own are faster"
    return None


def _missing(x: Tensor, *, forced: bool) -> str | None:
    """Name what the machine lacks to run a kernel on `x`; the interpreter must be asked for."""
    if not _has_triton():
        return "Triton is not installed"
    if x.device.type == "cpu" and forced and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if x.device.type != "cuda":
        return f"x is on {x.device}"
    # The oldest that the config tables in gpu/ have a row for.
    if torch.version.hip is None and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None


@cache
def _has_triton() -> bool:
    """Look for Triton once: a search of the path takes longer than a small moment."""
    return importlib.util.find_spec("triton") is not None


def _device_guard(x: Tensor) -> AbstractContextManager[object]:
    """Make the GPU of `x` the current one: Triton launches there."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()
