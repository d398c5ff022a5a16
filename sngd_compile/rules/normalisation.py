"""Normalisations: the rows of a channel are its normalised activations `xhat`."""

from __future__ import annotations

import inspect
import struct
from abc import abstractmethod
from collections.abc import Callable, Sequence
from math import isnan, nan
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_kernels
from sngd_compile.layout import Layout
from sngd_compile.rules.base import Call, Operand, Use
from sngd_compile.rules.channelwise import ChannelwiseRule, widened
from sngd_compile.rules.registry import register_rule
from sngd_compile.rules.structure import Planned, register_structure

Targets = tuple[Callable[..., Any], ...]


class Normalisation(ChannelwiseRule):
    """`y_c = w_c xhat_c + b_c`, `xhat` being what the same call gives without weight and bias.

    The geometry is one integer of the layer's own, then `epsilon`.
    """

    static: ClassVar[tuple[str, ...]] = ("eps",)

    def match(self, call: Call) -> Use | str:
        """Take the weight, and the bias where there is one."""
        weight = call.parameter("weight")
        if weight is None:
            return f"{self.name} uses it, but not as its weight"
        for name in self.static:
            if not isinstance(call.arguments[name], int | float | None):
                return f"{self.name}'s {name} is computed in the forward"
        bias = None
        if call.arguments.get("bias") is not None and call.parameter("bias") is not None:
            bias = call.arguments["bias"]
        geometry = (self.number(call, weight), _bits(call.arguments["eps"]))
        inputs, layout = self.inputs(call), Layout.channelwise(weight.shape)
        return Use(call.arguments["weight"], inputs, layout, bias, geometry)

    def number(self, call: Call, weight: Tensor) -> int:
        """Return the integer that the geometry begins with."""
        return 0

    def inputs(self, call: Call) -> tuple[Operand, ...]:
        """Return the activations, and what else `xhat` is made of."""
        return (call.arguments["input"],)

    @abstractmethod
    def normalised(self, samples: Tensor, number: int, epsilon: float | None) -> Tensor:
        """Return `xhat`, `[N, C, P]`, of activations in float32 or wider."""

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return the activations, `[N, C, P]`: what is not drawn is not normalised."""
        return [_by_channel(inputs[0])]

    def rows(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        """Return `xhat`, `[C, N * P, 1]`."""
        return super().rows([self._normalised(inputs, geometry)], geometry)

    def second_moment(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add every channel's sums to `out`, `[C, 1, 1]` or, with a bias, `[C, 2, 2]`."""
        return super().second_moment([self._normalised(samples, geometry)], geometry, bias, out)

    def diagonal(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add every channel's squares, and for its bias the rows' number, to `out` `[C, D]`."""
        size = out.shape[-1]
        moments = self.second_moment(samples, geometry, bias, out.new_zeros(*out.shape, size))
        return out.add_(moments.diagonal(dim1=-2, dim2=-1))

    def _normalised(self, samples: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        number, bits = geometry
        return self.normalised(widened(samples[0]), number, _epsilon(bits))


@register_rule
class LayerNorm(Normalisation):
    """Normalise over the last axes; every element of `normalized_shape` is a channel."""

    name = "layer_norm"
    targets: ClassVar[Targets] = (F.layer_norm, torch.layer_norm)
    signature = inspect.signature(
        lambda input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True: ...
    )

    def number(self, call: Call, weight: Tensor) -> int:
        """Return the number of normalised axes."""
        return weight.dim()

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return the activations, `[N, C, 1]`."""
        channels = inputs[0].shape[-geometry[0] :].numel()
        return [inputs[0].reshape(-1, channels, 1)]

    def normalised(self, samples: Tensor, number: int, epsilon: float | None) -> Tensor:
        """Return `[N, C, 1]`."""
        assert epsilon is not None
        return F.layer_norm(samples[..., 0], samples.shape[1:2], eps=epsilon)[..., None]


@register_rule
class RMSNorm(LayerNorm):
    """Divide by the root of the mean square over the last axes; there is no bias."""

    name = "rms_norm"
    targets = (F.rms_norm, torch.rms_norm)
    signature = inspect.signature(lambda input, normalized_shape, weight=None, eps=None: ...)

    def normalised(self, samples: Tensor, number: int, epsilon: float | None) -> Tensor:
        """Return `[N, C, 1]`."""
        return F.rms_norm(samples[..., 0], samples.shape[1:2], eps=epsilon)[..., None]


@register_rule
class GroupNorm(Normalisation):
    """Normalise every group of channels of every sample."""

    name = "group_norm"
    targets = (F.group_norm, torch.group_norm)
    signature = inspect.signature(
        lambda input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True: ...
    )
    static = ("num_groups", "eps")

    def number(self, call: Call, weight: Tensor) -> int:
        """Return the number of groups."""
        groups = call.arguments["num_groups"]
        assert isinstance(groups, int)
        return groups

    def normalised(self, samples: Tensor, number: int, epsilon: float | None) -> Tensor:
        """Return `[N, C, P]`."""
        assert epsilon is not None
        return F.group_norm(samples, number, eps=epsilon)


@register_rule
class BatchNorm(Normalisation):
    """Normalise every channel by the statistics of the batch, or by running ones.

    The running statistics are read, where they are what the call uses, and never written.
    """

    name = "batch_norm"
    targets: ClassVar[Targets] = (F.batch_norm,)
    signature = inspect.signature(F.batch_norm)
    flag: ClassVar[str] = "training"
    static = ("training", "eps")
    is_over_batch: ClassVar[bool] = True

    def number(self, call: Call, weight: Tensor) -> int:
        """Return whether the statistics are those of the input."""
        return int(bool(call.arguments[self.flag]))

    def inputs(self, call: Call) -> tuple[Operand, ...]:
        """Return the activations, and the running statistics where they are used."""
        running = () if call.arguments[self.flag] else ("running_mean", "running_var")
        return tuple(call.arguments[name] for name in ("input", *running))

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return the activations, `[N, C, P]`; normalised by running statistics, where used."""
        number, bits = geometry
        if number:
            return super().samples(inputs, geometry)
        activations, mean, variance = map(widened, inputs)
        epsilon = _epsilon(bits)
        assert epsilon is not None
        return [_by_channel(F.batch_norm(activations, mean, variance, eps=epsilon))]

    def normalised(self, samples: Tensor, number: int, epsilon: float | None) -> Tensor:
        """Return `[N, C, P]`."""
        assert epsilon is not None
        return self.of_the_batch(samples, epsilon) if number else samples

    def second_moment(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add the sums of the rows to `out`: by the batch's statistics they have a closed form.

        Of N P rows of a channel with the variance v, `sum xhat = 0` and
        `sum xhat^2 = N P v / (v + epsilon)`.
        """
        number, bits = geometry
        if not number or not self.is_over_batch:
            return super().second_moment(samples, geometry, bias, out)
        _, variance, count = _about_a_sample(widened(samples[0]))
        diagonal = out.diagonal(dim1=-2, dim2=-1)
        diagonal[:, 0].add_(count * variance / (variance + (_epsilon(bits) or 0.0)))
        if bias:
            diagonal[:, 1].add_(count)
        return out

    def of_the_batch(self, samples: Tensor, epsilon: float) -> Tensor:
        """Normalise by the statistics of what was drawn of the input."""
        mean, variance, _ = _about_a_sample(samples)
        return (samples - mean[:, None]) * (variance + epsilon).rsqrt()[:, None]


@register_rule
class TorchBatchNorm(BatchNorm):
    """`torch.batch_norm`, which takes its arguments in another order."""

    name = "torch.batch_norm"
    targets = (torch.batch_norm,)
    signature = inspect.signature(
        lambda input, weight, bias, running_mean, running_var, training, momentum, eps,
        cudnn_enabled: ...
    )  # fmt: skip


@register_rule
class InstanceNorm(BatchNorm):
    """Normalise every channel of every sample by its own statistics, or by running ones."""

    name = "instance_norm"
    targets: ClassVar[Targets] = (F.instance_norm,)
    signature = inspect.signature(F.instance_norm)
    flag = "use_input_stats"
    static = ("use_input_stats", "eps")
    is_over_batch = False

    def of_the_batch(self, samples: Tensor, epsilon: float) -> Tensor:
        """Normalise by the statistics of every sample."""
        return F.instance_norm(samples, eps=epsilon)


@register_rule
class TorchInstanceNorm(InstanceNorm):
    """`torch.instance_norm`, which takes its arguments in another order."""

    name = "torch.instance_norm"
    targets = (torch.instance_norm,)
    signature = inspect.signature(
        lambda input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps,
        cudnn_enabled: ...
    )  # fmt: skip


@register_structure(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def batch_norm_weights(module: nn.Module) -> dict[str, Planned]:
    """Describe the weight of a layer whose forward branches on the input's dimensions."""
    return _planned(module, BatchNorm.name)


@register_structure(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm_weights(module: nn.Module) -> dict[str, Planned]:
    """Describe the weight of a layer whose forward branches on the input's dimensions."""
    return _planned(module, InstanceNorm.name)


def _by_channel(activations: Tensor) -> Tensor:
    """View activations `[N, C, *]` as `[N, C, P]`."""
    return activations.flatten(2) if activations.dim() > 2 else activations[..., None]


def _about_a_sample(samples: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return mean and variance of every channel, and of how many numbers.

    In steps, since torch's own take a CPU many times as long: squares about one of the numbers,
    which is as far from the mean as the others, lose nothing where the mean is large.
    """
    first = samples[0, :, :1]
    moments = sngd_kernels.channel_second_moment(samples - first, bias=True)
    count = samples.shape[0] * samples.shape[2]
    mean = moments[:, 0, 1] / count
    variance = (moments[:, 0, 0] / count - mean.square()).clamp_min(0)
    return mean + first[:, 0], variance, count


def _planned(module: nn.Module, rule: str) -> dict[str, Planned]:
    weight = module._parameters.get("weight")
    if weight is None:
        return {}
    return {"weight": Planned(rule, Layout.channelwise(weight.shape), "bias")}


def _bits(epsilon: float | None) -> int:
    """Write a number as an integer, which a graph can carry; None as no number."""
    # By struct, because Dynamo of torch 2.11 does not follow `int.from_bytes`.
    (bits,) = struct.unpack("<q", struct.pack("<d", nan if epsilon is None else epsilon))
    return int(bits)


def _epsilon(bits: int) -> float | None:
    """Read what `_bits` wrote."""
    (epsilon,) = struct.unpack("<d", struct.pack("<q", bits))
    return None if isnan(epsilon) else float(epsilon)
