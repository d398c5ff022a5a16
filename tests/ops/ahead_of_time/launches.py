"""Every kernel as its launcher launches it: dtypes, sizes, aligned strides and others."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sngd_kernels.conv.geometry import conv_geometry
from sngd_kernels.gpu.channel_second_moment import launch_channel_second_moment
from sngd_kernels.gpu.cholesky_inverse import launch_cholesky_inverse
from sngd_kernels.gpu.conv_second_moment import launch_tap_products
from sngd_kernels.gpu.matmul_nt import launch_matmul_nt
from sngd_kernels.gpu.second_moment import launch_second_moment
from sngd_kernels.gpu.squared_sum import launch_squared_sum
from sngd_kernels.gpu.unit_second_moment import launch_unit_second_moment

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Launch:
    """One call of a launcher, on fake tensors.

    Attributes:
        name: operation, dtype and size, as in the table of the documentation.
        run: makes the tensors and calls the launcher.
        tensor_core: whether the products must run on tensor cores.
        wide_copies: whether 16-byte asynchronous copies are promised, on NVIDIA.
    """

    name: str
    run: Callable[[], object]
    tensor_core: bool = True
    wide_copies: bool = False


def fake(*shape: int, dtype: torch.dtype = FLOAT32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def label(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rows_launches() -> Iterator[Launch]:
    for dtype in (BFLOAT16, FLOAT32):
        for count, width in ((65536, 1024), (65537, 1023)):
            name = f"second_moment {label(dtype)} {count} x {width}"
            yield Launch(
                name,
                lambda n=count, d=width, t=dtype: launch_second_moment(
                    fake(n, d, dtype=t), bias=True
                ),
                wide_copies=dtype == BFLOAT16 and width == 1024,
            )
    yield Launch(
        "second_moment float16 4096 x 512, no bias, added to a buffer",
        lambda: launch_second_moment(
            fake(4096, 512, dtype=FLOAT16), bias=False, out=fake(512, 512)
        ),
    )
    for dtype in (BFLOAT16, FLOAT32):
        for width in (512, 511):
            yield Launch(
                f"unit_second_moment {label(dtype)} 8192 x {width}, 512 units",
                lambda d=width, t=dtype: launch_unit_second_moment(
                    fake(8192, d, dtype=t), fake(8192, 512), bias=True
                ),
            )


def sum_launches() -> Iterator[Launch]:
    for dtype in (BFLOAT16, FLOAT32):
        for count, width in ((65536, 1024), (65537, 1023)):
            yield Launch(
                f"squared_sum {label(dtype)} {count} x {width}",
                lambda n=count, d=width, t=dtype: launch_squared_sum(fake(n, d, dtype=t)),
                tensor_core=False,
            )
        for shape in ((256, 64, 3136), (255, 63, 49), (4096, 768, 1)):
            yield Launch(
                f"channel_second_moment {label(dtype)} {' x '.join(map(str, shape))}",
                lambda s=shape, t=dtype: launch_channel_second_moment(fake(*s, dtype=t), bias=True),
                tensor_core=False,
            )


def convolution(shape: tuple[int, ...], taps: int, dtype: torch.dtype) -> None:
    geometry = conv_geometry(shape, taps, 1, taps // 2, 1, 1)
    images, channels, *spatial = shape
    channels_last = fake(images, *spatial, channels, dtype=dtype).movedim(-1, 1)
    launch_tap_products(channels_last, geometry)


def conv_launches() -> Iterator[Launch]:
    for dtype in (BFLOAT16, FLOAT32):
        for shape in ((256, 64, 56, 56), (255, 63, 55, 55)):
            yield Launch(
                f"conv_second_moment {label(dtype)} {' x '.join(map(str, shape))} k3",
                lambda s=shape, t=dtype: convolution(s, 3, t),
            )


def matrix_launches() -> Iterator[Launch]:
    for width in (1, 16, 32, 64, 127, 128):
        yield Launch(
            f"cholesky_inverse float32 1024 x {width}^2",
            lambda d=width: launch_cholesky_inverse(
                fake(1024, d, d), fake(1024), fake(1024, dtype=torch.int32), bias=True
            ),
            tensor_core=False,
        )
    for width in (512, 511):
        for symmetric in (False, True):
            yield Launch(
                f"matmul_nt float32 4 x {width}^2{' symmetric' * symmetric}",
                lambda d=width, s=symmetric: launch_matmul_nt(
                    fake(4, d, d),
                    fake(4, d, d),
                    None if s else fake(4, d, d),
                    alpha=-1.0,
                    beta=1.0,
                    gamma=1.0,
                    symmetric=s,
                ),
            )


LAUNCHES = (*rows_launches(), *sum_launches(), *conv_launches(), *matrix_launches())
