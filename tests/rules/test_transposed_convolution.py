"""`nn.ConvTranspose1d`, `2d`, `3d` and `F.conv_transpose2d` obey every law."""

from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d

import sngd_compile as sngd
from laws import Case, every_law

pytestmark = pytest.mark.usefixtures("float64")


def scattered_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Note, for every output position, which input meets which tap, `[groups, N, K]`."""
    kernel = layer.kernel_size
    x = x if x.dim() == len(kernel) + 2 else x[None]
    with torch.no_grad():
        outputs = layer(x).shape[2:]
    rows = torch.zeros(*x.shape[:2], *kernel, *outputs)
    places = product(*(range(n) for n in x.shape[2:]), *(range(k) for k in kernel))
    for place in places:
        position, tap = place[: len(kernel)], place[len(kernel) :]
        axes = zip(position, tap, layer.stride, layer.padding, layer.dilation, strict=True)
        target = [i * s - p + t * d for i, t, s, p, d in axes]
        if all(0 <= t < n for t, n in zip(target, outputs, strict=True)):
            rows[(slice(None), slice(None), *tap, *target)] += x[(..., *position)]
    rows = rows.flatten(2 + len(kernel)).unflatten(1, (layer.groups, -1))
    return rows.flatten(2, -2).permute(1, 0, 3, 2).flatten(1, 2)


def outputs_first(weight: Tensor, groups: int) -> Tensor:
    """Lay the weight out with the weights of one output a row, groups one after the other."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flatten(1)


def transposed_case(kind, channels, kernel, shape, name="", **options):
    """Describe a transposed convolution on an input of `shape`."""
    words = ", ".join(f"{key}={value}" for key, value in options.items())
    return Case(
        name=name or f"{kind.__name__} {channels} kernel {kernel} on {[*shape]} {words}",
        module=lambda: kind(*channels, kernel, **options),
        shape=shape,
        rows=scattered_rows,
        channel_axis=-int(kind.__name__[-2]) - 1,
        bias="bias" if options.get("bias", True) else None,
        arrange=partial(outputs_first, groups=options.get("groups", 1)),
    )


class Sized2d(ConvTranspose2d):
    """Asks for an output size at call time."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return super().forward(x, output_size=(8, 8))


class Own(nn.Module):
    """`F.conv_transpose2d` with parameters of its own, which a graph captures."""

    kernel_size, stride, padding, dilation, groups = (3, 2), (2, 1), (1, 2), (1, 3), 2

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, *self.kernel_size))
        self.offset = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        geometry = (self.stride, self.padding, (1, 0), self.groups, self.dilation)
        return F.conv_transpose2d(x, self.kernel, self.offset, *geometry)


own = Case(
    name="own parameters",
    module=Own,
    shape=(3, 4, 3, 4),
    rows=scattered_rows,
    channel_axis=1,
    weight="kernel",
    bias="offset",
    arrange=partial(outputs_first, groups=2),
)
LINE, PLANE, SPACE = (3, 2, 5), (2, 2, 3, 4), (2, 2, 2, 3, 2)
case = transposed_case
CASES = [
    own,
    case(ConvTranspose1d, (2, 3), 3, LINE),
    case(ConvTranspose1d, (2, 3), 3, LINE, stride=2, padding=1, output_padding=1, bias=False),
    case(ConvTranspose1d, (2, 4), 2, LINE, stride=3, groups=2, dilation=3),
    case(ConvTranspose1d, (2, 3), 2, LINE, padding=2),
    case(ConvTranspose1d, (2, 3), 1, LINE, padding=1, stride=2, output_padding=1),
    case(ConvTranspose1d, (2, 3), 1, (3, 2, 2), padding=1, dilation=3, output_padding=2),
    case(ConvTranspose1d, (2, 3), 3, LINE[1:], stride=2, name="ConvTranspose1d unbatched"),
    case(ConvTranspose2d, (2, 3), (3, 2), PLANE, stride=(1, 2), padding=(2, 0)),
    case(ConvTranspose2d, (2, 2), 2, PLANE, stride=2, dilation=(2, 1), bias=False),
    case(ConvTranspose2d, (2, 4), 3, PLANE, groups=2, stride=2, padding=1, output_padding=(1, 0)),
    case(ConvTranspose2d, (2, 2), 3, PLANE, groups=2, padding=1, name="depthwise"),
    case(ConvTranspose2d, (2, 3), 3, PLANE[1:], stride=2, name="ConvTranspose2d unbatched"),
    case(Sized2d, (2, 3), 3, (2, 2, 4, 4), stride=2, padding=1, name="output_size 2d"),
    case(ConvTranspose3d, (2, 3), (2, 1, 3), SPACE, padding=(1, 0, 1), stride=(2, 1, 1)),
    case(ConvTranspose3d, (2, 2), 2, SPACE, groups=2, bias=False, output_padding=1, stride=2),
]


@every_law(CASES)
def test_transposed_convolution(laws):
    laws.check()


def test_an_output_size_at_call_time_is_taken():
    model = ConvTranspose1d(2, 3, 3, stride=2)
    net, x = sngd.reconstruct(model), torch.randn(2, 2, 4)
    for size in (9, 10):
        torch.testing.assert_close(net(x, output_size=[size]), model(x, output_size=[size]))
    assert sngd.fisher_layers(net)["weight"].rows_seen == 2 * (9 + 10)


class Tied(nn.Module):
    """One weight of as many inputs as outputs, read the one way and the other."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Encode and decode."""
        return F.conv_transpose1d(F.conv1d(x, self.weight), self.weight)


def test_a_weight_tied_to_a_convolution_is_left():
    (skip,) = sngd.explain(Tied()).skips
    assert skip.reason == (
        "its uses need different local Fishers (convolution, transposed_convolution); it trains by "
        "plain gradient descent"
    )


def test_a_stride_computed_in_the_forward_is_left():
    class Computed(Own):
        def forward(self, x: Tensor, stride: int) -> Tensor:
            return F.conv_transpose2d(x, self.kernel, self.offset, stride)

    reasons = {skip.name: skip.reason for skip in sngd.explain(Computed()).skips}
    assert "the transposed convolution's stride is computed in the forward" in reasons["kernel"]


def test_the_plan_names_the_rule():
    (site,) = sngd.explain(ConvTranspose2d(4, 6, 3, groups=2)).sites
    assert (site.rule, site.bias_name) == ("transposed_convolution", "bias")
    assert (site.layout.groups, site.size, site.layout.outputs) == (2, 2 * 9 + 1, 3)
