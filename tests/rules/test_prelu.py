"""`nn.PReLU` and `torch.prelu` obey every law, one local Fisher per slope."""

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from laws import Case, every_law

pytestmark = pytest.mark.usefixtures("float64")


class One(nn.PReLU):
    """One slope, with its outputs as the only channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return super().forward(x)[None]


class Method(One):
    """Calls the method of the input."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return x.prelu(self.weight)[None]


def negative_parts(layer: nn.Module, x: Tensor) -> Tensor:
    """Write the negative parts out, `[C, N, 1]`."""
    slopes = layer.weight.numel()
    parts = torch.where(x < 0, x, 0.0)
    parts = parts.transpose(0, 1).flatten(1) if slopes > 1 else parts.reshape(1, -1)
    return parts[..., None]


def prelu_case(name, module, shape, axis=0):
    """Describe a layer without bias."""
    arrange = lambda weight: weight.reshape(-1, 1)  # noqa: E731
    return Case(
        name=name,
        module=module,
        shape=shape,
        rows=negative_parts,
        channel_axis=axis,
        bias=None,
        arrange=arrange,
    )


CASES = [
    prelu_case("one slope", One, (3, 2, 5)),
    prelu_case("one slope, one axis", One, (9,)),
    prelu_case("one slope, method", Method, (4, 3)),
    prelu_case("channels", lambda: nn.PReLU(3), (7, 3), axis=1),
    prelu_case("channels of images", lambda: nn.PReLU(3), (2, 3, 4, 5), axis=1),
]


@every_law(CASES)
def test_prelu(laws):
    laws.check()


def test_the_plan_names_the_rule():
    (site,) = sngd.explain(nn.PReLU(3)).sites
    assert (site.rule, site.layout.groups, site.size, site.bias_name) == ("prelu", 3, 1, None)
