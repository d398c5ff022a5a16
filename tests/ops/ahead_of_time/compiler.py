"""Compiles, without a GPU, exactly what a launcher launches: its grid, constants and alignment.

A fake driver names the target, tensors are fake ones on "cuda", and instead of a launch every
kernel is compiled to machine code.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode  # seen on torch 2.11 to 2.14
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
PROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "sm_120": 170, "gfx942": 304}
TENSOR_CORE = {
    "sm_80": r"HMMA",
    "sm_90": r"HGMMA",
    "sm_100": r"UTC\w*MMA",
    "sm_120": r"HMMA",
    "gfx942": r"v_mfma_\w+",
}


class FakeDriver:
    """Just enough of a driver to compile for a target."""

    def __init__(self, family: str) -> None:
        self.target = TARGETS[family]
        self.device = list(TARGETS).index(family)  # compiled kernels are kept for each device
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"multiprocessor_count": PROCESSORS[family]}
        )

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0


class FakePointer:
    """An argument of a dtype, at an address divisible by 16 or only by its own size."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self.shape = tensor.shape
        self.address = tensor.storage_offset() * tensor.element_size()

    def data_ptr(self) -> int:
        return self.address

    def ptr_range(self) -> int:
        return 0


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs, and what it is made of.

    Attributes:
        kernel: name of the Triton function.
        registers: 32-bit registers a thread.
        spills: loads and stores of local memory.
        shared: bytes of shared memory of one program.
        tensor_core: number of tensor-core instructions.
        wide_copies: number of asynchronous 16-byte copies into shared memory.
    """

    kernel: str
    registers: int
    spills: int
    shared: int
    tensor_core: int
    wide_copies: int


def compile_launches(family: str, launch: Callable[[], object]) -> list[Resources]:
    """Run `launch` under fake tensors and compile what it would have launched on `family`."""
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        pointers = [FakePointer(a) if isinstance(a, torch.Tensor) else a for a in args]
        assert all(0 < size < 2**31 for size in grid), grid
        assert all(size < 2**16 for size in grid[1:]), grid
        compiled.append((self.fn.__name__, run(self, *pointers, grid=grid, warmup=True, **kwargs)))

    driver = mock.patch.object(triton.runtime.driver, "_active", FakeDriver(family))
    with driver, FakeTensorMode(), mock.patch.object(JITFunction, "run", compile_only):
        launch()
    return [resources(family, name, kernel) for name, kernel in compiled]


def resources(family: str, name: str, kernel: Any) -> Resources:
    """Read what a kernel needs from its machine code."""
    if TARGETS[family].backend == "hip":
        assembly = kernel.asm["amdgcn"]
        registers = int(re.findall(r"\.vgpr_count:\s+(\d+)", assembly)[0])
        spills = int(re.findall(r"\.vgpr_spill_count:\s+(\d+)", assembly)[0])
        copies = 0
    else:
        usage, assembly = disassemble(kernel.asm["cubin"])
        registers = int(re.findall(r"REG:(\d+)", usage)[0])
        spills = len(re.findall(r"\b(?:LDL|STL)\b", assembly))
        copies = len(re.findall(r"LDGSTS\.E\.\S*128\b", assembly))
    tensor_core = len(re.findall(TENSOR_CORE[family], assembly))
    return Resources(name, registers, spills, kernel.metadata.shared, tensor_core, copies)


def disassemble(cubin: bytes) -> tuple[str, str]:
    """Return the resource usage and the instructions of an NVIDIA binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        commands = [["cuobjdump", "--dump-resource-usage"], ["nvdisasm", "-c"]]
        usage, assembly = (
            subprocess.run(
                [TOOLS / tool, option, file.name], check=True, capture_output=True, text=True
            ).stdout
            for tool, option in commands
        )
    return usage, assembly
