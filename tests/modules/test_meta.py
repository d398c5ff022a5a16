"""A network that is made on the meta device gets its numbers from a state, or draws them."""

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from sngd_compile import Config

pytestmark = pytest.mark.usefixtures("float64")
SETTING = Config(refresh_every=2, observe_every=1)
X = torch.linspace(-1, 1, 35, dtype=torch.float64).reshape(7, 5)


class Tied(nn.Module):
    """Several kinds of layers, one without a bias, and one whose forward has a branch."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(5, 6), nn.LayerNorm(6)
        self.recurrent, self.last = nn.GRU(6, 4, batch_first=True), nn.Linear(4, 3, bias=False)

    def forward(self, x):
        x = self.norm(self.first(x)).tanh()
        return self.last(self.recurrent(x[None])[0])[0]


def made(device, fisher="shared"):
    """Reconstruct on a device."""
    with torch.device(device):
        return sngd.reconstruct(Tied(), SETTING.replace(fisher=fisher))


def train(net, steps=3):
    """Take some steps."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(X) - 1).square().mean().backward()
        optimizer.step()
    return net(X)


def state(net, kind):
    """Return a state of its own, or that of the plain network."""
    source = net if kind == "own" else sngd.fold(net)
    return {name: value.clone() for name, value in source.state_dict().items()}


@pytest.mark.parametrize("fisher", ["shared", "kronecker"])
@pytest.mark.parametrize("kind", ["own", "plain"])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_an_assigned_state_goes_on_as_one_that_is_copied(device, kind, fisher):
    source = made("cpu", fisher)
    train(source)
    assigned, copied = made(device, fisher), made("cpu", fisher)
    assigned.load_state_dict(state(source, kind), assign=True)
    copied.load_state_dict(state(source, kind))
    assert not any(tensor.is_meta for tensor in (*assigned.parameters(), *assigned.buffers()))
    torch.testing.assert_close(assigned(X), source(X))
    torch.testing.assert_close(train(assigned), train(copied))


@pytest.mark.parametrize("kind", ["own", "plain"])
def test_memory_that_is_empty_is_filled(kind):
    source = made("cpu")
    train(source)
    net = made("meta").to_empty(device="cpu")
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.is_floating_point():
            tensor.data.fill_(float("nan"))
    net.load_state_dict(state(source, kind))
    torch.testing.assert_close(net(X), source(X))


def test_shapes_pass_through_a_network_without_numbers():
    net = made("meta")
    assert net(X.to("meta")).shape == (7, 3)
    assert net.first.weight.is_meta


def test_a_bias_alone_is_assigned():
    net = made("meta")
    net.first.bias = nn.Parameter(torch.ones(6))
    net.first.weight = nn.Parameter(torch.ones(6, 5))
    assert not net.first.weight_prime.is_meta
