"""Any network of known layers keeps its function and follows the reference trajectory."""

import copy

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

import sngd_compile as sngd
from api import AS_IN_THE_PAPER
from random_networks import LAYERS, WIDTH, Network, chained, networks
from sngd_compile import Config
from sngd_compile.fisher.layer import FisherLayer

pytestmark = pytest.mark.usefixtures("float64")
CONFIG = Config(
    early_refreshes=(1, 3),
    refresh_every=2,
    observe_every=1,
    damping_rel_trace=1e-2,
    damping_abs=0.1,
    max_rows=None,
    **AS_IN_THE_PAPER,
)
RATE, MOMENTUM, STEPS = 0.02, 0.9, 6


def batch(step: int) -> Tensor:
    """Draw one input."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, 3, WIDTH, generator=generator) + 0.2


def loss(model: nn.Module, x: Tensor) -> Tensor:
    """Fit a wave."""
    output = model(x)
    return (output - torch.linspace(-1, 1, output.numel()).sin().view_as(output)).square().mean()


class Reference:
    """Heavy-ball descent on the plain weights, along natural gradients of given factors."""

    def __init__(self, model: nn.Module, net: nn.Module):
        self.model, self.net = model, net
        self.velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    @torch.no_grad()
    def step(self) -> None:
        """Take the factors as they are before the network's own step."""
        natural = {name: p.grad for name, p in self.model.named_parameters()}
        layers = sngd.fisher_layers(self.net)
        for site in sngd.explain(self.net).sites:
            names = list(dict.fromkeys(site.places[0].parameter_names))
            values = self.natural(layers[site.name], [natural[name] for name in names])
            natural |= dict(zip(names, values, strict=True))
        for name, parameter in self.model.named_parameters():
            if natural[name] is not None:
                self.velocity[name] = MOMENTUM * self.velocity[name] + natural[name]
                parameter -= RATE * self.velocity[name]

    def natural(self, layer: FisherLayer, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """Return `g (G + damping)^-1` of a weight and its bias."""
        if gradients[0] is None:
            return gradients
        matrix = layer.layout.matrices(gradients[0])
        joined = [matrix] + [layer.layout.vectors(g)[..., None] for g in gradients[1:]]
        together = torch.cat(joined, -1)
        if layer.kind == "diagonal":
            moved = together / (layer.factor + layer.damping)[..., None, :]
        else:
            damped = layer.factor + layer.damping * torch.eye(layer.size)
            moved = torch.linalg.solve(damped, together, left=False)
        weight = layer.layout.parameter(moved[..., : matrix.shape[-1]], gradients[0].shape)
        return [weight, *(moved[..., -1].reshape(g.shape) for g in gradients[1:])]


def assert_close(actual: nn.Module, expected: nn.Module) -> None:
    """Compare parameters and buffers."""
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(actual.state_dict()[name], value, rtol=1e-8, atol=1e-10)


def check(network: Network) -> None:
    """Train a network and the reference side by side."""
    torch.manual_seed(3)
    model = network()
    net = sngd.reconstruct(model, CONFIG)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
    reference = Reference(model, net)
    for step in range(STEPS):
        for one in (model, net):
            one.zero_grad()
            loss(one, batch(step)).backward()
        reference.step()
        optimizer.step()
        assert_close(sngd.fold(net), model)
    before = copy.deepcopy(net).eval()(batch(9))
    torch.testing.assert_close(sngd.refresh_(net).eval()(batch(9)), before)
    torch.testing.assert_close(sngd.fold(net)(batch(9)), before)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_between_two_linear_ones(name):
    check(chained([LAYERS["linear"], LAYERS[name], LAYERS["linear"]]))


@given(networks)
def test_random_networks(network):
    check(chained([LAYERS["linear"], network]))
