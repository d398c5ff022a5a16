"""Each operation on the GPU, the exact result, and the best that PyTorch's own calls do."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sngd_kernels import (
    channel_second_moment,
    cholesky_inverse_ex,
    conv_second_moment,
    matmul_nt,
    second_moment,
    squared_sum,
    unit_second_moment,
)
from sngd_kernels.conv.geometry import conv_geometry
from sngd_kernels.reference import (
    channel_second_moment_reference,
    cholesky_inverse_reference,
    conv_second_moment_reference,
    second_moment_reference,
    unit_second_moment_reference,
)


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        name: operation, dtype, size.
        arguments: makes the tensors, on the GPU.
        kernel: the operation.
        exact: the same in float64.
        library: the same with PyTorch's own calls, in float32.
    """

    name: str
    arguments: Callable[[], tuple[Tensor, ...]]
    kernel: Callable[..., Tensor]
    exact: Callable[..., Tensor]
    library: Callable[..., Tensor]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], 1)


def rows() -> Iterator[Case]:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for count, width in ((1, 1), (63, 100), (1000, 257), (8192, 1024), (8193, 1023)):
            yield Case(
                f"second_moment {dtype} {count} x {width}",
                lambda n=count, d=width, t=dtype: (random(n, d, dtype=t),),
                lambda x: second_moment(x, bias=True),
                lambda x: second_moment_reference(x.double(), bias=True),
                lambda x: with_ones(x.float()).T @ with_ones(x.float()),
            )
        yield Case(
            f"unit_second_moment {dtype} 1000 x 257, 5 units",
            lambda t=dtype: (random(1000, 257, dtype=t), torch.rand(1000, 5, device="cuda")),
            lambda x, nu: unit_second_moment(x, nu, bias=True),
            lambda x, nu: unit_second_moment_reference(x.double(), nu.double(), bias=True),
            lambda x, nu: unit_second_moment_reference(x.float(), nu, bias=True),
        )


def sums() -> Iterator[Case]:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for shape in ((1, 1), (1000, 257), (3, 500, 63), (65536, 1024)):
            yield Case(
                f"squared_sum {dtype} {shape}",
                lambda s=shape, t=dtype: (random(*s, dtype=t),),
                lambda x: squared_sum(x, bias=True),
                lambda x: torch.nn.functional.pad(
                    x.double().square().sum(-2), (0, 1), value=x.shape[-2]
                ),
                lambda x: torch.nn.functional.pad(
                    x.float().square().sum(-2), (0, 1), value=x.shape[-2]
                ),
            )
        for shape in ((7, 5, 1), (33, 65, 49), (4, 3, 3000)):
            yield Case(
                f"channel_second_moment {dtype} {shape}",
                lambda s=shape, t=dtype: (random(*s, dtype=t),),
                lambda x: channel_second_moment(x, bias=True),
                lambda x: channel_second_moment_reference(x.double(), bias=True),
                lambda x: channel_second_moment_reference(x.float(), bias=True),
            )


def convolutions() -> Iterator[Case]:
    for dtype in (torch.bfloat16, torch.float32):
        sizes_and_taps = (((8, 64, 28, 28), 3), ((3, 33, 15, 17), 5), ((2, 3, 63), 3))
        for shape, taps in (*sizes_and_taps, ((5, 160, 14, 9), 3), ((5, 48, 9, 9), 1)):
            sizes = conv_geometry(shape, taps, 1, taps // 2, 1, 1)
            arguments = (sizes.kernel, sizes.stride, sizes.padding, sizes.dilation, 1)
            yield Case(
                f"conv_second_moment {dtype} {shape} k{taps}",
                lambda s=shape, t=dtype: (random(*s, dtype=t),),
                lambda x, a=arguments: conv_second_moment(x, *a),
                lambda x, a=arguments: conv_second_moment_reference(x.double(), *a),
                lambda x, a=arguments: conv_second_moment_reference(x.float(), *a),
            )


def damped_moments(count: int, width: int) -> tuple[Tensor, Tensor]:
    x = random(count, 2 * width + 4, width)
    return x.mT @ x / x.shape[1], torch.full((count,), 0.1, device="cuda")


def factorised(matrices: Tensor, damping: Tensor) -> Tensor:
    identity = torch.eye(matrices.shape[-1], device="cuda")
    lower = torch.linalg.cholesky_ex(matrices + damping[:, None, None] * identity)[0]
    inverse: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
    return inverse


def matrices() -> Iterator[Case]:
    for width in (1, 16, 63, 64, 100, 128):
        yield Case(
            f"cholesky_inverse 17 x {width}^2",
            lambda d=width: damped_moments(17, d),
            lambda m, damping: cholesky_inverse_ex(m, damping)[0],
            lambda m, d: cholesky_inverse_reference(m.double(), d.double(), bias=False),
            factorised,
        )
    for width in (63, 512, 1000):
        yield Case(
            f"matmul_nt 3 x {width}^2",
            lambda d=width: (random(3, d, d), random(3, d, d)),
            lambda a, b: matmul_nt(a, b, alpha=-1.0, gamma=1.0),
            lambda a, b: torch.eye(a.shape[1]).double().cuda() - a.double() @ b.double().mT,
            lambda a, b: torch.eye(a.shape[1]).cuda() - a @ b.mT,
        )


CASES = (*rows(), *sums(), *convolutions(), *matrices())
