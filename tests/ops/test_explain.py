"""Which path a call takes is said before it is taken, and can be forced."""

import subprocess
import sys

import pytest
import torch

from sngd_kernels import (
    KernelUnavailableError,
    KernelValueError,
    cholesky_inverse,
    conv_second_moment,
    explain,
    matmul_nt,
    second_moment,
    squared_sum,
    token_counts,
)

ROWS = torch.ones(3, 2)

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch, sngd_kernels
x = torch.ones(3, 2)
assert sngd_kernels.second_moment(x).tolist() == [[3, 3], [3, 3]]
print(sngd_kernels.explain("second_moment", x))
"""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((second_moment, ROWS), "second_moment: reference (x is on cpu)"),
        (("second_moment", ROWS[:0]), "second_moment: reference (nothing to compute)"),
        ((second_moment, ROWS.double()), "second_moment: reference (no kernel for torch.float64)"),
        ((squared_sum, ROWS), "squared_sum: reference (x is on cpu)"),
        (
            ("token_counts", ROWS[0].long(), 2),
            "token_counts: reference (PyTorch's count is one kernel already)",
        ),
        ((matmul_nt, ROWS, ROWS), "matmul_nt: reference (x is on cpu)"),
        (
            (cholesky_inverse, torch.eye(129)),
            "cholesky_inverse: reference (D = 129 is above 128)",
        ),
        (
            (conv_second_moment, torch.ones(8, 64, 56, 56), 3),
            "conv_second_moment: reference (x is on cpu; by taps)",
        ),
        (
            (conv_second_moment, torch.ones(2, 4, 5, 5), 3, 2),
            "conv_second_moment: reference (the stride is not 1, so there are no tap offsets to "
            "share products; by patches)",
        ),
    ],
)
def test_one_line(arguments, line: str) -> None:
    assert str(explain(*arguments)) == line


def test_a_gpu_takes_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with torch._subclasses.fake_tensor.FakeTensorMode():
        x = torch.empty(3, 2, device="cuda")
        assert str(explain(second_moment, x)) == "second_moment: triton (x is on cuda:0)"
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert "older than compute capability 8.0" in str(explain(second_moment, x))


def test_32_bit_offsets_are_enough_or_the_kernel_is_not_taken() -> None:
    images = torch.empty_strided((2, 4, 8, 8), (1, 2**30, 8, 1), device="meta")
    assert "beyond 32-bit offsets" in explain(conv_second_moment, images, 3).reason
    many = torch.empty((2**20, 4, 40, 40), device="meta")
    assert "beyond 32-bit offsets" in explain(conv_second_moment, many, 3).reason


def test_the_variable_forces_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNGD_KERNELS", "reference")
    assert explain(second_moment, ROWS).reason == "SNGD_KERNELS=reference"
    monkeypatch.setenv("SNGD_KERNELS", "triton")
    with pytest.raises(KernelUnavailableError, match=r"x is on cpu; expected.*unset SNGD_KERNELS"):
        second_moment(ROWS)
    monkeypatch.setenv("SNGD_KERNELS", "fast")
    with pytest.raises(KernelValueError, match="'fast'; expected reference or triton"):
        second_moment(ROWS)


def test_what_has_no_kernel_cannot_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNGD_KERNELS", "triton")
    assert explain("diagonal_root_ex", ROWS).path == "reference"
    assert torch.equal(token_counts(torch.tensor([1, 1]), 3), torch.tensor([0, 2, 0]))


def test_the_roots_by_iteration_have_no_path_of_their_own() -> None:
    with pytest.raises(
        KernelValueError, match="'denman_beavers'; expected one of second_moment, conv"
    ):
        explain("denman_beavers", ROWS)


def test_without_triton_nothing_breaks() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TRITON],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "second_moment: reference (Triton is not installed)\n"


def test_without_a_gpu_triton_is_not_imported() -> None:
    code = "import sys, torch, sngd_kernels as k; k.second_moment(torch.ones(2, 2)); "
    code += "assert not [m for m in sys.modules if m.startswith('sngd_kernels.gpu')]"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
