"""What a launcher must know of the device: its family, its processors, how precise a product is."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import triton
from torch import Tensor

from ..errors import KernelUnavailableError

# Whether kernels run in Triton's interpreter, on a CPU: fixed once this package is imported.
INTERPRETED = bool(triton.knobs.runtime.interpret)

Family = Literal["sm_80", "sm_90", "sm_100", "sm_120", "gfx942", "interpreter"]

# Bytes of shared memory that one program may use; `triton.compile` does not check them.
SHARED_MEMORY: dict[Family, int] = {
    "sm_80": 166912,
    "sm_90": 232448,
    "sm_100": 232448,
    "sm_120": 101376,
    "gfx942": 65536,
}

# How a product of float32 matrices reaches the accuracy of float32: three tensor-core products on
# NVIDIA, the matrix cores' own float32 on AMD. The interpreter knows exact products only.
FLOAT32_PRODUCT: dict[Family, str] = {
    "sm_80": "tf32x3",
    "sm_90": "tf32x3",
    "sm_100": "tf32x3",
    "sm_120": "tf32x3",
    "gfx942": "ieee",
    "interpreter": "ieee",
}


@dataclass(frozen=True)
class Target:
    """Describe the device kernels are launched on.

    Attributes:
        family: the row of the config tables that holds for it.
        processors: number of streaming multiprocessors or compute units.
    """

    family: Family
    processors: int

    @property
    def widen(self) -> bool:
        """Whether half-precision tiles become float32 first: the interpreter has no bfloat16."""
        return self.family == "interpreter"

    def product(self, dtype: torch.dtype) -> str:
        """Name the precision of `tl.dot` for tiles of `dtype`; products of halves are exact."""
        return FLOAT32_PRODUCT[self.family] if dtype == torch.float32 else "ieee"


def current_target() -> Target:
    """Describe the current device.

    Raises:
        KernelUnavailableError: no config table has a row for it.
    """
    if INTERPRETED:
        return Target("interpreter", processors=2)
    driver = triton.runtime.driver.active
    return _target_of(driver, driver.get_current_device())


@cache
def _target_of(driver: Any, device: int) -> Target:
    """Ask the driver once: it takes a millisecond, longer than most launches."""
    target = driver.get_current_target()
    properties = driver.utils.get_device_properties(device)
    return Target(family(target.backend, target.arch), properties["multiprocessor_count"])


def copies_are_wide(matrices: Tensor) -> bool:
    """Whether rows or columns of `[*, N, D]` can be copied 16 bytes at a time."""
    rows, columns = matrices.stride()[-2:]
    start = matrices.storage_offset() * matrices.element_size()
    width = matrices.shape[-1] if columns == 1 else matrices.shape[-2]
    return min(rows, columns) == 1 and max(rows, columns) % 16 == width % 16 == start % 16 == 0


def compact(matrices: Tensor, block: int = 128) -> Tensor:
    """Copy `[*, N, D]` whose strides are so long that offsets inside a tile would need 64 bits."""
    if block * sum(matrices.stride()[-2:]) < 2**31:
        return matrices
    return matrices.clone(memory_format=torch.contiguous_format)


def family(backend: str, arch: int | str) -> Family:
    """Name the row of the config tables for `arch`, such as 90 or "gfx942"."""
    if backend == "hip" and str(arch).startswith("gfx9"):
        return "gfx942"
    families: tuple[tuple[int, Family], ...] = (
        (120, "sm_120"),
        (100, "sm_100"),
        (90, "sm_90"),
        (80, "sm_80"),
    )
    for oldest, name in families:
        if backend == "cuda" and int(arch) >= oldest:
            return name
    raise KernelUnavailableError(
        f"the device is {backend} {arch}; expected NVIDIA compute capability 8.0 or newer, or AMD "
        "gfx9: set SNGD_KERNELS=reference to compute with PyTorch's own operations"
    )
