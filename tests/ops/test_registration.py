"""What torch.library, torch.compile and vmap see of the operations."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sngd_kernels as kernels
from sngd_kernels.conv import ops as conv_ops
from sngd_kernels.moments import ops, sum_ops
from sngd_kernels.roots import ops as root_ops

ROWS, IMAGES = torch.randn(7, 3), torch.randn(2, 6, 5, 5)
TOKENS = torch.tensor([3, 0, 3, 1])
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
        conv_ops.conv_second_moment,
        (IMAGES, [3, 3], [1, 1], [1, 1], [1, 1], 2, True),
    ),
    "cholesky_inverse": (root_ops.cholesky_inverse, (FACTORS, torch.ones(2), True)),
    "matmul_nt": (root_ops.matmul_nt, (FACTORS, FACTORS, FACTORS, 0.5, 2.0, 1.0, True)),
    "squared_sum": (sum_ops.squared_sum, (FACTORS, True)),
    "add_squared_sum_": (sum_ops.add_squared_sum_, (torch.zeros(4), ROWS, True)),
    "channel_second_moment": (sum_ops.channel_second_moment, (FACTORS, True)),
    "add_channel_second_moment_": (
        sum_ops.add_channel_second_moment_,
        (torch.zeros(3, 1, 1), FACTORS, False),
    ),
    "token_counts": (sum_ops.token_counts, (TOKENS, 5, 3)),
    "add_token_counts_": (sum_ops.add_token_counts_, (torch.zeros(5), TOKENS, None)),
    "bag_squared_sum": (sum_ops.bag_squared_sum, (TOKENS, TOKENS, ROWS[:4, 0], 5)),
}


def cast(argument: Any, dtype: torch.dtype) -> Any:
    """A tensor of real numbers in another dtype; anything else as it is."""
    is_real = isinstance(argument, torch.Tensor) and argument.is_floating_point()
    return argument.to(dtype) if is_real else argument


@pytest.mark.parametrize(("operation", "arguments"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(operation: Any, arguments: tuple[Any, ...], dtype: torch.dtype) -> None:
    arguments = tuple(cast(argument, dtype) for argument in arguments)
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


def test_vmap_of_sums_is_a_loop() -> None:
    batch, tokens = torch.randn(4, 7, 3, 2), torch.randint(5, (4, 7))
    for operation, arguments in (
        (lambda x: kernels.squared_sum(x, bias=True), batch),
        (lambda x: kernels.channel_second_moment(x, bias=True), batch),
        (lambda x: kernels.token_counts(x, 5), tokens),
    ):
        loop = torch.stack([operation(entry) for entry in arguments])
        torch.testing.assert_close(torch.vmap(operation)(arguments), loop)


def test_vmap_of_roots_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    invert = root_ops.invert_factor
    monkeypatch.setattr(root_ops, "invert_factor", lambda *a: calls.append(1) or invert(*a))
    torch.vmap(lambda matrix: kernels.cholesky_inverse_ex(matrix, 0.1)[0])(FACTORS)
    assert calls == [1]


def test_the_folder_by_its_own_name_takes_no_operation_away(monkeypatch):
    monkeypatch.syspath_prepend(Path(kernels.__file__).parents[1])
    assert not hasattr(importlib.import_module("kernels"), "second_moment")
    registered = ops.second_moment(ROWS, True)
    torch.testing.assert_close(registered, kernels.second_moment(ROWS, bias=True))
    assert not [name for name in sys.modules if name.startswith("kernels.")]
