"""A layer to test, its input, and its rows written out by hand."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import prod
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sngd_kernels import sketch_basis
from sngd_kernels.reference import sketch_metric_reference


def by_output(weight: Tensor) -> Tensor:
    """Lay `[O, ...]` out as `[O, K]`."""
    return weight.flatten(1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layer on one shape of input.

    Args:
        name: Shown by pytest.
        module: Makes the layer; called anew by every law, always with the same seed.
        shape: Of the input.
        rows: The layer and an input -> the rows of the local Fisher without the bias's 1, `[N, K]`
            or `[groups, N, K]`, found without the library.
        channel_axis: Axis of the output along which its channels lie.
        weight: Name of the parameter under test.
        bias: Name of the bias that joins its local Fisher, or None.
        arrange: The weight -> `[O, K]`, one output a row, groups one after the other.
        diagonal: Whether the factor keeps the diagonal alone.
        fisher: `Config.fisher`.
        taps: Weights of one input channel, which lie side by side.
        block_size: `Config.block_size`.
        rank: Of a sketch, `Config.rank`.
        draw: Makes an input from a seeded generator; None for normal numbers off centre.
    """

    name: str
    module: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rows: Callable[[nn.Module, Tensor], Tensor]
    channel_axis: int = -1
    weight: str = "weight"
    bias: str | None = "bias"
    arrange: Callable[[Tensor], Tensor] = by_output
    diagonal: bool = False
    fisher: str = "shared"
    taps: int = 1
    block_size: int = 128
    rank: int = 3
    draw: Callable[[torch.Generator], Tensor] | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of `Config` that make it this local Fisher."""
        rank = self.rank if self.fisher == "sketch" else None
        return {"fisher": self.fisher, "block_size": self.block_size, "rank": rank}

    @property
    def has_output_side(self) -> bool:
        """Whether the local Fisher is made of gradients of the outputs too."""
        return self.fisher == "kronecker"

    @property
    def tolerance(self) -> float:
        """Digits of the metric: one written out with a pseudo-inverse has fewer."""
        return 1e-9 if self.fisher == "sketch" else 1e-10

    def build(self) -> nn.Module:
        """Make the layer."""
        torch.manual_seed(1)
        return self.module()

    def input(self, seed: int = 0) -> Tensor:
        """Draw an input, off centre so that the bias matters."""
        generator = torch.Generator().manual_seed(seed)
        if self.draw is not None:
            return self.draw(generator)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64) + 0.3

    def moments(self, model: nn.Module, x: Tensor) -> tuple[Tensor, int]:
        """Return the mean outer product of the rows, `[groups, D, D]`, and their number."""
        rows = self.rows(model, x)
        rows = rows[None] if rows.dim() == 2 else rows
        if self.bias is not None:
            rows = F.pad(rows, (0, 1), value=1.0)
        return self.kept(rows.mT @ rows / rows.shape[1]), rows.shape[1]

    def kept(self, moment: Tensor) -> Tensor:
        """Set what the local Fisher leaves out of `[*, D, D]` to zero."""
        if self.diagonal:
            return moment.diagonal(dim1=-2, dim2=-1).diag_embed()
        if self.fisher != "block":
            return moment
        number = torch.zeros(moment.shape[-1])
        for start in self.block_starts(moment.shape[-1] - (self.bias is not None)):
            number[start:] += 1
        return moment * (number[:, None] == number)

    def block_starts(self, width: int) -> list[int]:
        """List the first input of each block: whole channels where one fits into it."""
        whole = self.taps * (self.block_size // self.taps)
        return list(range(0, width, whole or self.block_size))

    def matrix(self, values: dict[str, Tensor]) -> Tensor:
        """Lay what belongs to the weight and its bias out as `[O, D]`."""
        weight = self.arrange(values[self.weight])
        bias = None if self.bias is None else values[self.bias].reshape(-1, 1)
        return weight if bias is None else torch.cat([weight, bias], 1)

    def full(self, matrices: Tensor) -> Tensor:
        """Return a factor or a root as `[groups, D, D]`, written out if it is a diagonal."""
        if self.diagonal:
            return matrices.diag_embed().reshape(-1, *2 * matrices.shape[-1:])
        if self.fisher == "block":
            return torch.stack(
                [self.from_blocks(row) for row in matrices.view(-1, matrices.shape[-1])]
            )
        return matrices.reshape(-1, *matrices.shape[-2:])

    def metric(self, moments: Tensor, damping: float) -> Tensor:
        """Return what steps are taken in, `[groups, D, D]`, for these moments of the rows."""
        if self.fisher != "sketch":
            return moments + damping * torch.eye(moments.shape[-1])
        omega = self.omega(moments)
        return torch.stack([sketch_metric_reference(one, omega, damping) for one in moments])

    def omega(self, moments: Tensor) -> Tensor:
        """Return the columns that a sketch of these moments is made with."""
        size = moments.shape[-1]
        return sketch_basis(size, min(self.rank, size), moments.dtype, moments.device)

    def from_blocks(self, flat: Tensor) -> Tensor:
        """Return `[D, D]` from blocks one after the other."""
        width = self.width()
        starts = self.block_starts(width)
        sizes = [stop - start for start, stop in pairwise([*starts, width])]
        sizes[-1] += self.bias is not None
        parts = flat.split([size * size for size in sizes])
        return torch.block_diag(*(p.view(n, n) for p, n in zip(parts, sizes, strict=True)))

    def width(self) -> int:
        """Return K, the weights of one output."""
        return self.arrange(self.build().get_parameter(self.weight)).shape[1]

    def called(self, name: str) -> Self:
        """Return the case under another name."""
        return replace(self, name=name)


def linear_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Take every index of the input but the last as one row."""
    return x.reshape(-1, x.shape[-1])


def conv_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Cut out the window of every output position, one after the other, `[groups, N, K]`."""
    axes = list(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True))
    images = x if x.dim() == len(axes) + 2 else x[None]
    spans = [d * (k - 1) for k, _, d in axes]
    if layer.padding == "same":
        sides = [(span // 2, span - span // 2) for span in spans]
    else:
        padding = (0,) * len(axes) if layer.padding == "valid" else layer.padding
        sides = [(side, side) for side in padding]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    images = F.pad(images, [side for pair in reversed(sides) for side in pair], mode)
    corners = product(
        *(
            range(0, size - span, stride)
            for size, span, (_, stride, _) in zip(images.shape[2:], spans, axes, strict=True)
        )
    )
    windows = []
    for corner in corners:
        cut = [slice(c, c + n + 1, a[2]) for c, n, a in zip(corner, spans, axes, strict=True)]
        windows.append(images[(..., *cut)])
    patches = torch.stack(windows, 1).flatten(0, 1)
    return torch.stack([group.flatten(1) for group in patches.chunk(layer.groups, 1)])


def linear_case(inputs: int, outputs: int, lead: tuple[int, ...], bias: bool = True) -> Case:
    """Describe an `nn.Linear` on an input `[*lead, inputs]`."""
    return Case(
        name=f"{inputs}-{outputs} on {[*lead, inputs]}{'' if bias else ' without bias'}",
        module=lambda: nn.Linear(inputs, outputs, bias=bias),
        shape=(*lead, inputs),
        rows=linear_rows,
        bias="bias" if bias else None,
    )


def conv_case(
    kind: type[nn.Module],
    channels: tuple[int, int],
    kernel: object,
    shape: tuple[int, ...],
    **options: object,
) -> Case:
    """Describe an `nn.Conv1d`, `2d` or `3d` on an input of `shape`."""
    words = ", ".join(f"{name}={value}" for name, value in options.items())
    axes = int(kind.__name__[-2])
    return Case(
        name=f"{kind.__name__} {channels[0]}-{channels[1]} kernel {kernel} on {[*shape]} {words}",
        module=lambda: kind(*channels, kernel, **options),
        shape=shape,
        rows=conv_rows,
        channel_axis=-axes - 1,
        taps=prod(kernel) if isinstance(kernel, tuple) else kernel**axes,
        bias="bias" if options.get("bias", True) else None,
    )
