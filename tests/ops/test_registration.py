"""What torch.library, torch.compile and vmap see of the operations."""

from typing import Any

import pytest
import torch

import sngd_kernels as kernels
from sngd_kernels import ops

ROWS, IMAGES = torch.randn(7, 3), torch.randn(2, 4, 5, 5)
FACTORS = torch.eye(3).expand(2, 3, 3) + ROWS.T @ ROWS

CASES = {
    "second_moment": (ops.second_moment, (ROWS, True)),
    "add_second_moment_": (ops.add_second_moment_, (torch.zeros(3, 3), ROWS, False)),
    "unit_second_moment": (ops.unit_second_moment, (ROWS, ROWS[:, :2], True)),
    "add_unit_second_moment_": (
        ops.add_unit_second_moment_,
        (torch.zeros(2, 3, 3), ROWS, ROWS[:, :2], False),
    ),
    "conv_second_moment": (
        ops.conv_second_moment,
        (IMAGES, [3, 3], [1, 1], [1, 1], [1, 1], 2, True),
    ),
    "cholesky_inverse": (ops.cholesky_inverse, (FACTORS, torch.ones(2), True)),
    "matmul_nt": (ops.matmul_nt, (FACTORS, FACTORS, FACTORS, 0.5, 2.0, 1.0, True)),
}


@pytest.mark.parametrize(("operation", "arguments"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(operation: Any, arguments: tuple[Any, ...], dtype: torch.dtype) -> None:
    arguments = tuple(x.to(dtype) if isinstance(x, torch.Tensor) else x for x in arguments)
    torch.library.opcheck(operation, arguments)


def test_every_operation_is_checked() -> None:
    registered = {name for name in dir(torch.ops.sngd_kernels) if not name.startswith("_")}
    assert registered - {"name"} == set(CASES)


def moments_and_roots(x: torch.Tensor) -> torch.Tensor:
    factor = kernels.second_moment(x, bias=True)
    inverse, _ = kernels.cholesky_inverse_ex(factor, 0.1, bias=True)
    return kernels.matmul_nt(inverse, inverse, gamma=1.0, symmetric=True)


def test_one_graph_under_torch_compile() -> None:
    compiled = torch.compile(moments_and_roots, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ROWS), moments_and_roots(ROWS))


def test_vmap_is_a_loop() -> None:
    batch = torch.randn(4, 7, 3)
    mapped = torch.vmap(moments_and_roots, in_dims=0)(batch)
    torch.testing.assert_close(mapped, torch.stack([moments_and_roots(x) for x in batch]))


def test_vmap_of_convolutions_is_a_loop() -> None:
    images = torch.randn(2, 4, 5, 5, 3)
    mapped = torch.vmap(lambda x: kernels.conv_second_moment(x, 2), in_dims=4)(images)
    loop = [kernels.conv_second_moment(x, 2) for x in images.unbind(4)]
    torch.testing.assert_close(mapped, torch.stack(loop))


def test_vmap_of_a_buffer() -> None:
    batch, buffers = torch.randn(4, 7, 3), torch.ones(4, 3, 3)
    torch.vmap(lambda x, out: kernels.second_moment(x, out=out))(batch, buffers)
    torch.testing.assert_close(buffers, 1 + batch.mT @ batch)


def test_vmap_of_roots_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    invert = ops.invert_factor
    monkeypatch.setattr(ops, "invert_factor", lambda *a: calls.append(1) or invert(*a))
    torch.vmap(lambda matrix: kernels.cholesky_inverse_ex(matrix, 0.1)[0])(FACTORS)
    assert calls == [1]
