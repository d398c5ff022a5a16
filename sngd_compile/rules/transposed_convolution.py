"""`F.conv_transpose1d/2d/3d`: every output position is one row, what of the input reaches it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from math import prod
from types import EllipsisType

import torch.nn.functional as F
from torch import Tensor, nn

import sngd_kernels
from sngd_compile.layout import Layout
from sngd_compile.rules.base import Call, Rule, Use
from sngd_compile.rules.convolution import Convolution, Geometry, groups_of, is_static, per_axis
from sngd_compile.rules.registry import register_rule
from sngd_compile.rules.structure import Planned, register_structure


@register_rule
class TransposedConvolution(Rule):
    """`y = W^T * x + b` with any stride, padding, output padding, dilation and groups.

    It is a convolution with stride 1 and the weight mirrored, of the input with `stride - 1` zeros
    between its positions. The geometry holds, as `stride`, that spacing, and the padding of the
    spaced input, which is negative where it is cropped.

    Source: KFC (Grosse and Martens 2016, arXiv 1602.01407), input and output swapped.
    """

    name = "transposed_convolution"
    targets = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
    signature = inspect.signature(
        lambda input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1,
        dilation=1: ...
    )  # fmt: skip
    least_samples = Convolution.least_samples

    def match(self, call: Call) -> Use | str:
        """Take the weight and its static geometry."""
        weight = call.parameter("weight")
        if weight is None:
            return "the transposed convolution uses it, but not as its weight"
        arguments = {**call.arguments, "groups": groups_of(call.arguments["groups"], weight)}
        static = ("stride", "padding", "output_padding", "groups", "dilation")
        dynamic = [name for name in static if not is_static(arguments[name])]
        if dynamic:
            return f"the transposed convolution's {dynamic[0]} is computed in the forward"
        kernel, groups = tuple(weight.shape[2:]), arguments["groups"]
        stride, padding, more, dilation = (
            per_axis(arguments[name], len(kernel))
            for name in ("stride", "padding", "output_padding", "dilation")
        )
        before = tuple(d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True))
        # Output padding lengthens the result at its end only.
        after = tuple(low + extra for low, extra in zip(before, more, strict=True))
        geometry = Geometry(groups, kernel, stride, dilation, before, after)
        bias = call.arguments["bias"] if call.parameter("bias") is not None else None
        inputs = (call.arguments["input"],)
        layout = transposed_layout(weight.shape, groups)
        return Use(call.arguments["weight"], inputs, layout, bias, geometry.encode())

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return images `[N, C, *spatial]`; a single image gets its axis."""
        batched = len(Geometry.decode(geometry).kernel) + 2
        images = inputs[0]
        return [images if images.dim() == batched else images[None]]

    def rows_per_sample(self, samples: Sequence[Tensor], geometry: Sequence[int]) -> int:
        """Return the output positions of one image."""
        layer = Geometry.decode(geometry)
        spaced = [(n - 1) * s + 1 for n, s in zip(samples[0].shape[2:], layer.stride, strict=True)]
        return _as_convolution(layer).positions(
            [n + low + high for n, low, high in zip(spaced, layer.before, layer.after, strict=True)]
        )

    def rows(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        """Return the patches of the spaced input, mirrored, `[*, N * positions, K]`."""
        layer = Geometry.decode(geometry)
        numbers = _as_convolution(layer).encode()
        patches: Tensor = _CONVOLUTION.rows([_spaced(inputs[0], layer)], numbers)
        taps: Tensor = patches.unflatten(-1, (-1, *layer.kernel)).flip(_spatial(layer))
        return taps.flatten(-1 - len(layer.kernel))

    def second_moment(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add the patches' second moment to `out`: mirroring the images mirrors the patches."""
        images, sizes = _operands(samples, geometry)
        return sngd_kernels.conv_second_moment(images, *sizes, bias=bias, out=out)

    def sketch(
        self,
        samples: Sequence[Tensor],
        geometry: Sequence[int],
        bias: bool,
        omega: Tensor,
        out: Tensor,
    ) -> Tensor:
        """Add the sketch of the patches' second moment, as the equal convolution finds it."""
        images, sizes = _operands(samples, geometry)
        return sngd_kernels.conv_sketch(images, omega, *sizes, bias=bias, out=out)


Sizes = tuple[tuple[int, ...], int, int, tuple[int, ...], int]
"""Kernel, stride, padding, dilation and groups, as the kernels take them."""


def _operands(samples: Sequence[Tensor], geometry: Sequence[int]) -> tuple[Tensor, Sizes]:
    """Return the images of the equal convolution, and its sizes."""
    layer = Geometry.decode(geometry)
    images = _spaced(samples[0], layer).flip(_spatial(layer))
    return images, (layer.kernel, 1, 0, layer.dilation, layer.groups)


def transposed_layout(shape: Sequence[int], groups: int) -> Layout:
    """Lay `[C_in, C_out / groups, *kernel]` out with one output channel a row."""
    inputs, outputs, *kernel = shape
    width = inputs // groups * prod(kernel)
    if groups == 1:
        return Layout(tuple(shape), (1, 0, *range(2, len(shape))), (outputs, width))
    view = (groups, inputs // groups, outputs, *kernel)
    return Layout(view, (0, 2, 1, *range(3, len(view))), (groups, outputs, width))


@register_structure(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution_weights(module: nn.Module) -> dict[str, Planned]:
    """Describe the weight of a layer whose forward branches on `output_size`."""
    weight, groups = module._parameters["weight"], module.groups
    assert weight is not None
    assert isinstance(groups, int)
    layout = transposed_layout(weight.shape, groups)
    return {"weight": Planned(TransposedConvolution.name, layout, "bias")}


_CONVOLUTION = Convolution()


def _as_convolution(layer: Geometry) -> Geometry:
    """Return the geometry of the equal convolution of the spaced input."""
    axes = len(layer.kernel)
    return Geometry(
        layer.groups, layer.kernel, (1,) * axes, layer.dilation, (0,) * axes, (0,) * axes
    )


def _spaced(images: Tensor, layer: Geometry) -> Tensor:
    """Insert `stride - 1` zeros between positions, then pad or crop both ends of every axis."""
    sizes = [(n - 1) * s + 1 for n, s in zip(images.shape[2:], layer.stride, strict=True)]
    spaced = images.new_zeros((*images.shape[:2], *sizes))
    every: list[EllipsisType | slice] = [..., *(slice(None, None, s) for s in layer.stride)]
    spaced[tuple(every)] = images
    pairs = list(zip(reversed(layer.before), reversed(layer.after), strict=True))
    sides = [side for pair in pairs for side in pair]
    padded = F.pad(spaced, [max(side, 0) for side in sides])
    return F.pad(padded, [min(side, 0) for side in sides])


def _spatial(layer: Geometry) -> list[int]:
    return list(range(-len(layer.kernel), 0))
