"""Forward-mode differentiation carries its tangents through a network, compiled before or not."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import sngd_compile as sngd
from sngd_compile.fisher.spec import FEW

WIDE = 131
pytestmark = pytest.mark.usefixtures("float64", "fresh")

LAYERS = {
    "on few rows": (lambda: nn.Linear(WIDE, 4 * FEW), (FEW, WIDE)),
    "on rows": (lambda: nn.Linear(WIDE, 4 * FEW), (2 * FEW, WIDE)),
    "on the weight": (lambda: nn.Linear(WIDE, FEW + 1), (3 * FEW, WIDE)),
    "of few outputs": (lambda: nn.Linear(5, 3), (7, 5)),
    "a convolution": (lambda: nn.Conv2d(3, FEW + 1, 3), (2, 3, 5, 6)),
    "recurrent": (lambda: nn.LSTM(5, 6, batch_first=True), (3, 4, 5)),
}


def output(network: nn.Module, x: Tensor) -> Tensor:
    found = network(x)
    return found if isinstance(found, Tensor) else found[0]


def tangent(network: nn.Module, x: Tensor, direction: Tensor) -> Tensor | None:
    """Return the derivative of the output along a direction of the input."""
    with forward_ad.dual_level():
        dual = output(network, forward_ad.make_dual(x, direction))
        return forward_ad.unpack_dual(dual).tangent


@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
@pytest.mark.parametrize("name", LAYERS)
def test_tangents_are_those_of_the_folded_network(name, backend):
    build, shape = LAYERS[name]
    net = sngd.reconstruct(build())
    net(torch.randn(4 * WIDE, *shape[1:]))
    sngd.refresh_(net).requires_grad_(False)
    x, direction = torch.randn(shape), torch.randn(shape)
    expected = tangent(sngd.fold(net), x, direction)
    if backend is not None:
        net = torch.compile(net, backend=backend, fullgraph=True)
        output(net, x)
    torch.testing.assert_close(tangent(net, x, direction), expected)
