"""Normalisation layers and functions obey every law, a factor of 2x2 per channel."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laws import Case, every_law

pytestmark = pytest.mark.usefixtures("float64")
LARGE = 0.2
"""An epsilon with which the second moment of a channel is not 1 for every batch alike."""


def column(weight: Tensor) -> Tensor:
    """Lay one number per channel out."""
    return weight.reshape(-1, 1)


def perturbed(make):
    """Start a layer away from the identity."""

    def module() -> nn.Module:
        layer = make()
        for parameter in layer.parameters():
            nn.init.normal_(parameter, 0.7)
        return layer

    return module


def standardised(x: Tensor, axes: tuple[int, ...], mean: bool = True, eps: float = 1e-5) -> Tensor:
    """Subtract the mean and divide by the standard deviation over some axes."""
    if mean:
        x = x - x.mean(axes, keepdim=True)
    return x / (x.square().mean(axes, keepdim=True) + eps).sqrt()


def over_last(layer: nn.Module, x: Tensor, axes: int = 1, **options) -> Tensor:
    """Standardise the last axes; every element of them is a channel, `[C, N, 1]`."""
    rows = standardised(x, tuple(range(-axes, 0)), **options)
    return rows.reshape(-1, x.shape[-axes:].numel()).T[..., None]


def channels_first(rows: Tensor) -> Tensor:
    """Lay `[N, C, *]` out as `[C, N, 1]`."""
    return rows.transpose(0, 1).flatten(1)[..., None]


def over_batch(layer: nn.Module, x: Tensor, eps: float = LARGE) -> Tensor:
    """Standardise every channel over the batch."""
    return channels_first(standardised(x, (0, *range(2, x.dim())), eps=eps))


def over_positions(layer: nn.Module, x: Tensor, batched: bool = True) -> Tensor:
    """Standardise every channel of every sample."""
    x = x if batched else x[None]
    return channels_first(standardised(x, tuple(range(2, x.dim())), eps=LARGE))


def over_group(layer: nn.Module, x: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
    """Standardise every group of channels of every sample."""
    grouped = x.unflatten(1, (groups, -1))
    axes = tuple(range(2, x.dim() + 1))
    return channels_first(standardised(grouped, axes, eps=eps).flatten(1, 2))


def of_running(layer: nn.Module, x: Tensor) -> Tensor:
    """Standardise every channel by the layer's running statistics."""
    shape = (-1, *[1] * (x.dim() - 2))
    mean, variance = (t.reshape(shape) for t in (layer.running_mean, layer.running_var))
    return channels_first((x - mean) / (variance + 1e-5).sqrt())


def without_bias(layer):
    """Take the bias away; `bias=False` is newer than torch 2.11."""
    layer.register_parameter("bias", None)
    return layer


def norm_case(name, make, shape, rows, channel_axis=1, bias="bias"):
    """Describe a layer with one weight per channel."""
    return Case(
        name=name,
        module=perturbed(make),
        shape=shape,
        rows=rows,
        channel_axis=channel_axis,
        bias=bias,
        arrange=column,
    )


class FlatLayerNorm(nn.LayerNorm):
    """Gives its channels along one axis."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return super().forward(x).flatten(-2)


class Own(nn.Module):
    """A function of torch on parameters and statistics of its own."""

    def __init__(self, function, **options):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.randn(3)) for _ in range(2))
        self.register_buffer("running_mean", torch.tensor([0.3, -0.2, 0.1]))
        self.register_buffer("running_var", torch.tensor([1.3, 0.7, 2.1]))
        self.function, self.options = function, options

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(self, x, **self.options)


def frozen_batch_norm(layer, x):
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)


def batch_norm_of_torch(layer, x):
    pair, statistics = (layer.weight, layer.bias), (layer.running_mean, layer.running_var)
    return torch.batch_norm(x, *pair, *statistics, False, 0.1, 1e-5, True)


def instance_norm_of_torch(layer, x):
    return torch.instance_norm(x, layer.weight, layer.bias, None, None, True, 0.1, LARGE, True)


def group_norm_of_torch(layer, x):
    return torch.group_norm(x, 3, layer.weight, layer.bias, LARGE)


def layer_norm_of_torch(layer, x):
    return torch.layer_norm(x, (3,), layer.weight, layer.bias)


PLANE, NO_BIAS = (3, 4, 2, 3), {"bias": None}
last = {"channel_axis": -1}
CASES = [
    norm_case("LayerNorm", lambda: nn.LayerNorm(5), (3, 2, 5), over_last, **last),
    norm_case("LayerNorm of one sample", lambda: nn.LayerNorm(5), (5,), over_last, **last),
    norm_case(
        "LayerNorm without bias",
        lambda: nn.LayerNorm(5, eps=0.1, bias=False),
        (7, 5),
        partial(over_last, eps=0.1),
        **last,
        **NO_BIAS,
    ),
    norm_case(
        "LayerNorm of two axes",
        lambda: FlatLayerNorm((2, 3)),
        (4, 3, 2, 3),
        partial(over_last, axes=2),
        **last,
    ),
    norm_case(
        "RMSNorm",
        lambda: nn.RMSNorm(5),
        (3, 2, 5),
        partial(over_last, mean=False, eps=torch.finfo(torch.float64).eps),
        **last,
        **NO_BIAS,
    ),
    norm_case(
        "RMSNorm eps",
        lambda: nn.RMSNorm(3, eps=0.3),
        (7, 3),
        partial(over_last, mean=False, eps=0.3),
        **last,
        **NO_BIAS,
    ),
    norm_case("GroupNorm", lambda: nn.GroupNorm(2, 4), PLANE, partial(over_group, groups=2)),
    norm_case("GroupNorm flat", lambda: nn.GroupNorm(1, 4), (3, 4), partial(over_group, groups=1)),
    norm_case("BatchNorm1d flat", lambda: nn.BatchNorm1d(3, eps=LARGE), (7, 3), over_batch),
    norm_case(
        "BatchNorm1d", lambda: nn.BatchNorm1d(3, eps=LARGE, momentum=None), (3, 3, 5), over_batch
    ),
    norm_case("BatchNorm2d", lambda: nn.BatchNorm2d(4, eps=LARGE), PLANE, over_batch),
    norm_case(
        "BatchNorm2d without bias",
        lambda: without_bias(nn.BatchNorm2d(4, eps=LARGE)),
        PLANE,
        over_batch,
        **NO_BIAS,
    ),
    norm_case("BatchNorm3d", lambda: nn.BatchNorm3d(2, eps=LARGE), (2, 2, 3, 2, 2), over_batch),
    norm_case(
        "BatchNorm1d of the batch alone",
        lambda: nn.BatchNorm1d(3, eps=LARGE, track_running_stats=False),
        (7, 3),
        over_batch,
    ),
    norm_case(
        "SyncBatchNorm of one process",
        lambda: nn.SyncBatchNorm(3, eps=LARGE),
        (3, 3, 5),
        over_batch,
    ),
    norm_case(
        "InstanceNorm1d",
        lambda: nn.InstanceNorm1d(3, eps=LARGE, affine=True),
        (2, 3, 5),
        over_positions,
    ),
    norm_case(
        "InstanceNorm2d tracking",
        lambda: nn.InstanceNorm2d(4, eps=LARGE, affine=True, track_running_stats=True),
        PLANE,
        over_positions,
    ),
    norm_case(
        "InstanceNorm2d unbatched",
        lambda: nn.InstanceNorm2d(4, eps=LARGE, affine=True),
        PLANE[1:],
        partial(over_positions, batched=False),
        channel_axis=0,
    ),
    norm_case(
        "InstanceNorm3d",
        lambda: nn.InstanceNorm3d(2, eps=LARGE, affine=True),
        (2, 2, 3, 2, 2),
        over_positions,
    ),
    norm_case("F.batch_norm, running", lambda: Own(frozen_batch_norm), (5, 3, 2), of_running),
    norm_case("torch.batch_norm", lambda: Own(batch_norm_of_torch), (5, 3), of_running),
    norm_case(
        "torch.instance_norm", lambda: Own(instance_norm_of_torch), (2, 3, 5), over_positions
    ),
    norm_case(
        "torch.group_norm",
        lambda: Own(group_norm_of_torch),
        (2, 3, 5),
        partial(over_group, groups=3, eps=LARGE),
    ),
    norm_case("torch.layer_norm", lambda: Own(layer_norm_of_torch), (4, 3), over_last, **last),
]


@every_law(CASES)
def test_normalisation(laws):
    laws.check()
