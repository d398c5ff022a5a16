"""The kernels on a GPU: as exact as PyTorch's own calls, the same bits every time, capturable."""

import shutil
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from ops.device.operations import CASES, Case, random
from sngd_kernels import NotPositiveDefiniteError, cholesky_inverse, explain, second_moment

SANITIZER = shutil.which("compute-sanitizer")


def error(value: Tensor, exact: Tensor) -> float:
    return ((value.double() - exact).abs().max() / exact.abs().max()).item()


@pytest.fixture(autouse=True)
def exact_library_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_as_exact_as_the_library(case: Case) -> None:
    arguments = case.arguments()
    exact = case.exact(*arguments)
    library = error(case.library(*arguments), exact)
    assert error(case.kernel(*arguments), exact) <= 4 * library + 2e-6


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_bits_every_time(case: Case) -> None:
    arguments = case.arguments()
    first = case.kernel(*arguments)
    assert all(torch.equal(first, case.kernel(*arguments)) for _ in range(5))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_cuda_graph_captures_it(case: Case) -> None:
    arguments = case.arguments()
    expected = case.kernel(*arguments)  # compiled before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = case.kernel(*arguments)
    captured.fill_(torch.nan)
    graph.replay()
    assert torch.equal(captured, expected)


def test_a_gpu_takes_the_kernel_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SNGD_KERNELS")
    assert explain(second_moment, random(3, 2)).path == "triton"


def test_beyond_32_bit_offsets() -> None:
    count, width = 2**21 + 100, 1030
    if torch.cuda.mem_get_info()[0] < 3 * count * width * 2:
        pytest.skip("needs 13 GB of free memory")
    x = torch.ones(count, width, dtype=torch.bfloat16, device="cuda")
    x[-1] = 2
    assert x.numel() > 2**31
    assert torch.equal(second_moment(x[-50:]), torch.full((width, width), 53.0, device="cuda"))
    moment = second_moment(x)
    torch.testing.assert_close(moment, torch.full_like(moment, count + 3), rtol=1e-6, atol=0)


def test_not_positive_definite_is_named() -> None:
    factors = torch.eye(5, device="cuda").repeat(3, 1, 1)
    factors[2, 3, 3] = -1.0
    with pytest.raises(NotPositiveDefiniteError, match=r"matrix \[2\].*pivot 4 of 5"):
        cholesky_inverse(factors)


@pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_sanitizer_finds_nothing(tool: str) -> None:
    small = "test_as_exact_as_the_library and (63 or 15)"
    command = [str(SANITIZER), "--tool", tool, "--error-exitcode", "9", sys.executable]
    command += ["-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", small]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
