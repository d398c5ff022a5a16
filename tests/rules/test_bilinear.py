"""`nn.Bilinear` obeys every law."""

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from laws import Case, every_law
from sngd_compile import Config

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # of vmap, in law 6
]


class Pair(nn.Bilinear):
    """Takes its two inputs side by side."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return super().forward(x[..., : self.in1_features], x[..., self.in1_features :])


def products(layer: nn.Bilinear, x: Tensor) -> Tensor:
    """Take the Kronecker product of every pair."""
    x = x.reshape(-1, x.shape[-1])
    cut = layer.in1_features
    return torch.stack([torch.kron(pair[:cut], pair[cut:]) for pair in x])


def pair_case(sizes, lead, bias=True):
    """Describe a layer on inputs `[*lead, I1]` and `[*lead, I2]`."""
    return Case(
        name=f"{sizes} on {[*lead]}{'' if bias else ' without bias'}",
        module=lambda: Pair(*sizes, bias=bias),
        shape=(*lead, sizes[0] + sizes[1]),
        rows=products,
        bias="bias" if bias else None,
    )


CASES = [
    pair_case((3, 2, 4), (7,)),
    pair_case((3, 2, 4), (3, 5), bias=False),
    pair_case((1, 3, 2), (9,)),
    pair_case((2, 2, 1), ()),
]


@every_law(CASES)
def test_bilinear(laws):
    laws.check()


def test_two_inputs_as_the_layer_takes_them():
    model = nn.Bilinear(3, 2, 4)
    net, pair = (
        sngd.reconstruct(model, Config(max_rows=None)),
        (torch.randn(5, 3), torch.randn(5, 2)),
    )
    torch.testing.assert_close(net(*pair), model(*pair))
    assert sngd.fisher_layers(net)["weight"].rows_seen == 5


def test_a_large_layer_keeps_the_diagonal():
    (site,) = sngd.explain(nn.Bilinear(7, 5, 3), Config(memory_budget=100)).sites
    assert (site.rule, site.kind, site.size) == ("bilinear", "diagonal", 36)
    net = sngd.reconstruct(nn.Bilinear(7, 5, 3), Config(memory_budget=100, max_rows=None))
    pair = torch.randn(4, 7), torch.randn(4, 5)
    net(*pair)
    rows = torch.einsum("ni,nj->nij", *pair).flatten(1)
    factor = sngd.fisher_layers(sngd.refresh_(net))["weight"].factor
    torch.testing.assert_close(factor[:-1], rows.square().mean(0))
    assert factor[-1] == 1
