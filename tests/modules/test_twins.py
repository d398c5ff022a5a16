"""A target network inside of a network: an average of parameters is none of weights."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from api import EVERY_STEP, batch, mlp, sgd

pytestmark = pytest.mark.usefixtures("float64")


class WithTarget(nn.Module):
    """An online network and a target network, as of self-supervised learning."""

    def __init__(self, frozen: bool = True) -> None:
        super().__init__()
        self.online = mlp()
        self.target = copy.deepcopy(self.online).requires_grad_(not frozen)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what both say."""
        with torch.no_grad():
            wanted = self.target(x)
        return self.online(x), wanted

    def update(self, rate: float = 0.1) -> None:
        """Average the parameters into the target network."""
        pairs = zip(self.target.parameters(), self.online.parameters(), strict=True)
        for average, parameter in pairs:
            average.data = average.data.lerp(parameter.data, rate)


class InBuffers(nn.Module):
    """Averages of weights in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.online = mlp()
        self.register_buffer("average", self.online[0].weight.detach().clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network says, and the target."""
        return self.online(x), torch.zeros(len(x), 3)

    def update(self, rate: float = 0.1) -> None:
        """Average a parameter into the buffer."""
        self.average.lerp_(dict(self.online.named_parameters())["0.weight"].detach(), rate)


def learn(net: nn.Module, update=lambda: None, steps: int = 4) -> None:
    """Train the online network, and call something after each step."""
    optimizer = sgd(net.online)
    for step in range(steps):
        optimizer.zero_grad()
        (one, other) = net(batch(step))
        (one - other - 1).square().mean().backward()
        optimizer.step()
        update()


@pytest.mark.parametrize("build", [WithTarget, lambda: WithTarget(frozen=False), InBuffers])
def test_an_average_of_parameters_is_reported_once(build):
    net = sngd.reconstruct(build(), EVERY_STEP)
    with pytest.warns(sngd.SngdWarning, match=r"online.0.weight.*began as a copy.*follow") as said:
        learn(net, net.update)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(net, net.update)


def test_an_average_that_follows_is_one_of_weights():
    net = sngd.reconstruct(WithTarget(), EVERY_STEP)
    net.target = sngd.follow(copy.deepcopy(net.online).requires_grad_(False), net.online)
    expected = [p.detach() for p in sngd.fold(net).target.parameters()]

    def update() -> None:
        nonlocal expected
        net.update()
        online = sngd.fold(net).online.parameters()
        expected = [e.lerp(p.detach(), 0.1) for e, p in zip(expected, online, strict=True)]

    learn(net, update)
    torch.testing.assert_close(list(sngd.fold(net).target.parameters()), expected)


def test_what_is_trained_loaded_or_left_alone_is_not_reported():
    nets = [sngd.reconstruct(WithTarget(frozen=False), EVERY_STEP) for _ in range(2)]
    learn(nets[0])
    optimizer = sgd(nets[1])
    for step in range(3):  # both are trained
        optimizer.zero_grad()
        (nets[1].online(batch(step)) + nets[1].target(batch(step))).square().mean().backward()
        optimizer.step()
    net = sngd.reconstruct(WithTarget(), EVERY_STEP)
    learn(net, lambda: net.load_state_dict(other_state(net)))


def other_state(net: nn.Module) -> dict[str, Tensor]:
    state = net.state_dict()
    return state | {"target.0.weight": state["target.0.weight"] + 1}
