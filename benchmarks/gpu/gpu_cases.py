"""What `gpu_kernels.py` times: each kernel, and the best of PyTorch's own calls for the same."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sngd_kernels import (
    cholesky_inverse_ex,
    conv_second_moment,
    matmul_nt,
    second_moment,
    unit_second_moment,
)
from sngd_kernels.reference import (
    cholesky_inverse_reference,
    conv_second_moment_reference,
    second_moment_reference,
    unit_second_moment_reference,
)

BFLOAT16 = torch.bfloat16
Arguments = Callable[[], tuple[Any, ...]]


@dataclass(frozen=True)
class GpuCase:
    """One size of one operation.

    Attributes:
        name: operation, dtype, size.
        library_name: what it is compared with.
        arguments: makes the tensors.
        small: makes fewer, for the comparison with float64.
        kernel: the operation.
        library: the same with PyTorch's own calls.
        exact: the same in float64.
        bytes: read and written at least.
        multiply_adds: at least, halved where the result is symmetric.
    """

    name: str
    library_name: str
    arguments: Arguments
    small: Arguments
    kernel: Callable[..., Tensor]
    library: Callable[..., Tensor]
    exact: Callable[..., Tensor]
    bytes: float
    multiply_adds: float


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def rows_and_buffer(count: int, width: int, size: int) -> tuple[Tensor, Tensor]:
    """Rows, and zeros to add to: what is there already would hide an error."""
    return random(count, width, dtype=BFLOAT16), torch.zeros(size, size, device="cuda")


def images_of(*shape: int) -> tuple[Tensor]:
    return (random(*shape, dtype=BFLOAT16),)


def second_moments() -> Iterator[GpuCase]:
    """cuBLAS reads halves and sums in float32: the fair rival writes float32 itself."""
    for width in (512, 1024, 4096, 8192):
        for bias in (False, True):
            size = width + bias

            def library(x: Tensor, out: Tensor, bias: bool = bias) -> Tensor:
                rows = torch.cat([x, x.new_ones(len(x), 1)], 1) if bias else x
                return out.mul_(0.95).add_(torch.mm(rows.T, rows, out_dtype=torch.float32))

            yield GpuCase(
                f"second_moment bf16 65536 x {width}{' bias' * bias}",
                "[cat +] cuBLAS + average",
                partial(rows_and_buffer, 65536, width, size),
                partial(rows_and_buffer, 999, width, size),
                lambda x, out, bias=bias: second_moment(x, bias=bias, out=out.mul_(0.95)),
                library,
                lambda x, out, bias=bias: second_moment_reference(x.double(), bias=bias),
                2 * 65536 * width + 4 * size**2,
                65536 * size**2 / 2,
            )


def unfold(x: Tensor) -> Tensor:
    columns = functional.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)
    return torch.mm(columns, columns.T, out_dtype=torch.float32)


def convolutions() -> Iterator[GpuCase]:
    for images, channels, size in ((256, 64, 56), (256, 128, 28), (256, 256, 14), (256, 512, 7)):
        shape = (images, channels, size, size)
        yield GpuCase(
            f"conv_second_moment bf16 {'x'.join(map(str, shape))} k3",
            "unfold + cuBLAS",
            partial(images_of, *shape),
            partial(images_of, 2, *shape[1:]),
            lambda x: conv_second_moment(x, 3, 1, 1),
            unfold,
            lambda x: conv_second_moment_reference(x.double(), (3, 3), (1, 1), (1, 1), (1, 1), 1),
            2 * images * channels * size**2 + 4 * (9 * channels) ** 2,
            13 * images * size**2 * channels**2,
        )


def units() -> Iterator[GpuCase]:
    def library(x: Tensor, nu: Tensor) -> Tensor:
        rows = x.float()
        return torch.stack([(rows * unit[:, None]).T @ rows for unit in nu.T])

    yield GpuCase(
        "unit_second_moment bf16 8192 x 512, 512 units",
        "one weighted cuBLAS product a unit",
        lambda: (random(8192, 512, dtype=BFLOAT16), torch.rand(8192, 512, device="cuda")),
        lambda: (random(300, 512, dtype=BFLOAT16), torch.rand(300, 5, device="cuda")),
        unit_second_moment,
        library,
        lambda x, nu: unit_second_moment_reference(x.double(), nu.double()),
        2 * 8192 * 512 + 4 * 8192 * 512 + 4 * 512**3,
        8192 * 512**3 / 2,
    )


def damped_moments(count: int, width: int) -> tuple[Tensor, Tensor]:
    x = random(count, 2 * width + 4, width)
    return x.mT @ x / x.shape[1], torch.full((count,), 0.1, device="cuda")


def factorised(matrices: Tensor, damping: Tensor) -> Tensor:
    identity = torch.eye(matrices.shape[-1], device="cuda")
    lower = torch.linalg.cholesky_ex(matrices + damping[:, None, None] * identity)[0]
    inverse: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
    return inverse


def matrices() -> Iterator[GpuCase]:
    for count, width in ((1024, 16), (1024, 32), (1024, 64), (256, 128)):
        yield GpuCase(
            f"cholesky_inverse fp32 {count} x {width}^2",
            "cholesky_ex + triangular solve",
            partial(damped_moments, count, width),
            partial(damped_moments, 7, width),
            lambda m, damping: cholesky_inverse_ex(m, damping)[0],
            factorised,
            lambda m, d: cholesky_inverse_reference(m.double(), d.double(), bias=False),
            8 * count * width**2,
            2 * count * width**3 / 3,
        )
    yield GpuCase(
        "matmul_nt fp32 16 x 1024^2",
        "baddbmm in float32",
        lambda: (random(16, 1024, 1024), random(16, 1024, 1024)),
        lambda: (random(1, 1024, 1024), random(1, 1024, 1024)),
        lambda a, b: matmul_nt(a, b, addend=a),
        lambda a, b: torch.baddbmm(a, a, b.mT),
        lambda a, b: a.double() + a.double() @ b.double().mT,
        16 * 4 * 4 * 1024**2,
        16 * 1024**3,
    )


CASES = (*second_moments(), *convolutions(), *units(), *matrices())
