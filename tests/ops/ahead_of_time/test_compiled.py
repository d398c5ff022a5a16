"""Every kernel, compiled for every target as it is launched there: what its machine code is."""

import pytest

pytest.importorskip("triton")

import triton

from ops.ahead_of_time.compiler import TARGETS, compile_launches
from ops.ahead_of_time.launches import LAUNCHES, Launch
from sngd_kernels.gpu.target import SHARED_MEMORY

MARKS = {"sm_90": [], "sm_80": pytest.mark.slow, "gfx942": pytest.mark.slow}
MOST_SPILLS = 0 if triton.__version__ >= "3.7" else 2
"""Registers; the oldest triton lets one kernel spill two of them."""

FAMILIES = [pytest.param(f, marks=MARKS.get(f, pytest.mark.nightly)) for f in TARGETS]


@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda launch: launch.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_machine_code(family: str, launch: Launch) -> None:
    kernels = compile_launches(family, launch.run)
    assert kernels
    spilling = {kernel.kernel: kernel.spills for kernel in kernels if kernel.spills > MOST_SPILLS}
    assert spilling == {}
    assert all(kernel.shared <= SHARED_MEMORY[family] for kernel in kernels)
    if launch.tensor_core:
        assert kernels[0].tensor_core > 0
    if launch.wide_copies and family != "gfx942":
        assert kernels[0].wide_copies > 0
