"""`F.conv1d`, `F.conv2d`, `F.conv3d`: every output position is one row, the patch it reads."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor

import sngd_kernels
from sngd_compile.capture.stand_ins import Unknown
from sngd_compile.layout import Layout
from sngd_compile.rules.base import Call, Rule, Use
from sngd_compile.rules.registry import register_rule


@dataclass(frozen=True)
class Geometry:
    """A convolution's static numbers, one per spatial axis; padding before and after the axis."""

    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def encode(self) -> tuple[int, ...]:
        """Return plain integers, which a graph can carry."""
        fields = (self.kernel, self.stride, self.dilation, self.before, self.after)
        return (self.groups, *(value for field in fields for value in field))

    @classmethod
    def decode(cls, numbers: Sequence[int]) -> Self:
        """Read what `encode` wrote."""
        axes = (len(numbers) - 1) // 5
        fields = [tuple(numbers[1 + i * axes : 1 + (i + 1) * axes]) for i in range(5)]
        return cls(numbers[0], *fields)

    @classmethod
    def of(cls, arguments: dict[str, Any], weight: Tensor) -> Self:
        """Read the arguments of the call; `padding="same"` puts an odd rest after the axis."""
        kernel = tuple(weight.shape[2:])
        axes = len(kernel)
        stride = per_axis(arguments["stride"], axes)
        dilation = per_axis(arguments["dilation"], axes)
        padding = arguments["padding"]
        if padding == "same":
            totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            before = tuple(total // 2 for total in totals)
            after = tuple(total - total // 2 for total in totals)
        else:
            before = after = per_axis(0 if padding == "valid" else padding, axes)
        return cls(arguments["groups"], kernel, stride, dilation, before, after)

    def pad(self, images: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Return images and the symmetric padding that is left; an uneven one is laid on here."""
        if self.before == self.after:
            return images, self.before
        pairs = zip(reversed(self.before), reversed(self.after), strict=True)
        return F.pad(images, [side for pair in pairs for side in pair]), (0,) * len(self.kernel)

    def positions(self, spatial: Sequence[int]) -> int:
        """Return how many output positions one image has."""
        axes = zip(
            spatial, self.kernel, self.stride, self.dilation, self.before, self.after, strict=True
        )
        return prod(
            max(0, (n + low + high - d * (k - 1) - 1) // s + 1) for n, k, s, d, low, high in axes
        )


@register_rule
class Convolution(Rule):
    """`y = W * x + b` with any stride, padding, dilation and groups, in one to three dimensions.

    Circular, reflect and replicate modes pad before the call, so they need nothing here.

    Source: KFC (Grosse and Martens 2016, arXiv 1602.01407), expand setting.
    """

    name = "convolution"
    targets = (F.conv1d, F.conv2d, F.conv3d)
    signature = inspect.signature(
        lambda input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1: ...
    )
    # The rows of one image are alike, so a few images would say little (decision 3).
    least_samples = 16
    takes_halves = True

    def match(self, call: Call) -> Use | str:
        """Take the weight and its static geometry."""
        weight = call.parameter("weight")
        if weight is None:
            return "the convolution uses it, but not as its weight"
        # They go into the graph as plain integers, so they must be known before the forward runs.
        arguments = {**call.arguments, "groups": groups_of(call.arguments["groups"], weight)}
        static = ("stride", "padding", "dilation", "groups")
        dynamic = [name for name in static if not is_static(arguments[name])]
        if dynamic:
            return f"the convolution's {dynamic[0]} is computed in the forward"
        geometry = Geometry.of(arguments, weight)
        groups = geometry.groups if geometry.groups > 1 else None
        bias = call.arguments["bias"] if call.parameter("bias") is not None else None
        inputs = (call.arguments["input"],)
        layout = Layout.plain(weight.shape, groups)
        return Use(call.arguments["weight"], inputs, layout, bias, geometry.encode())

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return images `[N, C, *spatial]`; a single image gets its axis."""
        batched = len(Geometry.decode(geometry).kernel) + 2
        images = inputs[0]
        return [images if images.dim() == batched else images[None]]

    def rows_per_sample(self, samples: Sequence[Tensor], geometry: Sequence[int]) -> int:
        """Return the output positions of one image."""
        return Geometry.decode(geometry).positions(samples[0].shape[2:])

    def rows(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        """Return the patches, `[N * positions, K]` or `[groups, N * positions, K]`."""
        layer = Geometry.decode(geometry)
        images, padding = layer.pad(inputs[0])
        sides = [side for padded in reversed(padding) for side in (padded, padded)]
        patches: Tensor = F.pad(images, sides)
        for axis, (k, s, d) in enumerate(
            zip(layer.kernel, layer.stride, layer.dilation, strict=True), start=2
        ):
            patches = patches.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
        axes = len(layer.kernel)
        # Channels come before taps in a row, as they do in `weight.flatten(1)`.
        patches = patches.unflatten(1, (layer.groups, -1)).movedim(1, 0)
        patches = patches.movedim(2, 2 + axes).flatten(1, 1 + axes).flatten(2)
        return patches if layer.groups > 1 else patches[0]

    def second_moment(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add the patches' second moment to `out` without making the patches."""
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
        """Add the sketch of the patches' second moment, which the convolution itself finds."""
        images, sizes = _operands(samples, geometry)
        return sngd_kernels.conv_sketch(images, omega, *sizes, bias=bias, out=out)

    def block_moments(
        self,
        samples: Sequence[Tensor],
        geometry: Sequence[int],
        bias: bool,
        out: Sequence[Tensor],
    ) -> None:
        """Add the blocks' second moments; of whole channels without making the patches."""
        layer = Geometry.decode(geometry)
        taps = prod(layer.kernel)
        # More taps than `block_size`: blocks cut through channels, as only patches can be cut.
        if out[0].shape[-1] % taps:
            super().block_moments(samples, geometry, bias, out)
            return
        images, padding = layer.pad(samples[0])
        by_group, start = images.unflatten(1, (layer.groups, -1)), 0
        for moment in out:
            with_bias = bias and moment is out[-1]
            stop = start + (moment.shape[-1] - with_bias) // taps
            channels, start = by_group[:, :, start:stop].flatten(1, 2), stop
            sngd_kernels.conv_second_moment(
                channels,
                layer.kernel,
                layer.stride,
                padding,
                layer.dilation,
                layer.groups,
                bias=with_bias,
                out=moment,
            )

    def output_rows(self, outputs: Tensor, geometry: Sequence[int]) -> Tensor:
        """Return `[N, positions, O]` or `[N, positions, groups, O]`: an image is a sample."""
        layer = Geometry.decode(geometry)
        images = outputs if outputs.dim() == len(layer.kernel) + 2 else outputs[None]
        rows = images.flatten(2).mT
        return rows if layer.groups == 1 else rows.unflatten(-1, (layer.groups, -1))


Sizes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""Kernel, stride, padding, dilation and groups, as the kernels take them."""


def _operands(samples: Sequence[Tensor], geometry: Sequence[int]) -> tuple[Tensor, Sizes]:
    """Return the images, padded where that is uneven, and the sizes of the convolution."""
    layer = Geometry.decode(geometry)
    images, padding = layer.pad(samples[0])
    return images, (layer.kernel, layer.stride, padding, layer.dilation, layer.groups)


def per_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """Return one number per spatial axis."""
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * axes if len(numbers) == 1 else numbers


def groups_of(given: Any, weight: Tensor) -> Any:
    """Return the number of groups; in a rehearsal, which knows no sizes, that of the channels.

    Causal convolutions of state space models count them in the activations. Where there are others
    when the network runs, the call does not fit what was planned, and is named.
    """
    is_depthwise = isinstance(given, Unknown) and weight.shape[1] == 1
    return weight.shape[0] if is_depthwise else given


def is_static(value: object) -> bool:
    """Say whether an argument is known before the forward runs."""
    if isinstance(value, tuple | list):
        return all(isinstance(number, int) for number in value)
    return isinstance(value, int | str)
