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
    def normalised(self, inputs: Sequence[Tensor], number: int, epsilon: float | None) -> Tensor:
        """Return `xhat`, `[N, C, *]`, of inputs in float32 or wider."""

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return `xhat` as `[N, C, P]`, made of the whole batch before any of it is drawn."""
        number, bits = geometry
        normalised = self.normalised([widened(t) for t in inputs], number, _epsilon(bits))
        return [normalised.reshape(*normalised.shape[:2], -1)]


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

    def normalised(self, inputs: Sequence[Tensor], number: int, epsilon: float | None) -> Tensor:
        """Return `[N, C]`."""
        shape = inputs[0].shape[-number:]
        assert epsilon is not None
        return F.layer_norm(inputs[0], shape, eps=epsilon).reshape(-1, shape.numel())


@register_rule
class RMSNorm(LayerNorm):
    """Divide by the root of the mean square over the last axes; there is no bias."""

    name = "rms_norm"
    targets = (F.rms_norm, torch.rms_norm)
    signature = inspect.signature(lambda input, normalized_shape, weight=None, eps=None: ...)

    def normalised(self, inputs: Sequence[Tensor], number: int, epsilon: float | None) -> Tensor:
        """Return `[N, C]`."""
        shape = inputs[0].shape[-number:]
        return F.rms_norm(inputs[0], shape, eps=epsilon).reshape(-1, shape.numel())


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

    def normalised(self, inputs: Sequence[Tensor], number: int, epsilon: float | None) -> Tensor:
        """Return `[N, C, *]`."""
        assert epsilon is not None
        return F.group_norm(inputs[0], number, eps=epsilon)


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

    def number(self, call: Call, weight: Tensor) -> int:
        """Return whether the statistics are those of the input."""
        return int(bool(call.arguments[self.flag]))

    def inputs(self, call: Call) -> tuple[Operand, ...]:
        """Return the activations, and the running statistics where they are used."""
        running = () if call.arguments[self.flag] else ("running_mean", "running_var")
        return tuple(call.arguments[name] for name in ("input", *running))

    def normalised(self, inputs: Sequence[Tensor], number: int, epsilon: float | None) -> Tensor:
        """Return `[N, C, *]`."""
        assert epsilon is not None
        if not number:
            activations, mean, variance = inputs
            return F.batch_norm(activations, mean, variance, eps=epsilon)
        return self.of_the_batch(inputs[0], epsilon)

    def of_the_batch(self, activations: Tensor, epsilon: float) -> Tensor:
        """Normalise by the statistics of the input."""
        # In steps, since `F.batch_norm` takes a CPU four times as long.
        channels = activations.flatten(2) if activations.dim() > 2 else activations[..., None]
        count = max(1, channels.shape[0] * channels.shape[2])
        centred = channels - channels.sum((0, 2))[:, None] / count
        squares = sngd_kernels.channel_second_moment(centred, bias=False).flatten()
        return centred * (squares / count + epsilon).rsqrt()[:, None]


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

    def of_the_batch(self, activations: Tensor, epsilon: float) -> Tensor:
        """Normalise by the statistics of every sample."""
        return F.instance_norm(activations, eps=epsilon)


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
