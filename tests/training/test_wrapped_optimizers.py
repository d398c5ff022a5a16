"""An optimizer whose step runs inside another's: a step of training counts once."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

import sngd_compile as sngd
from sngd_compile import Config

pytestmark = pytest.mark.usefixtures("float64")


class Holding(Optimizer):
    """Owns the groups of another optimizer and lets it step."""

    def __init__(self, parameters):
        self.inner = [SGD(parameters, lr=0.03, momentum=0.9)]
        super().__init__(self.inner[0].param_groups, {})

    def step(self, closure=None):
        """Step."""
        return self.inner[0].step(closure)


class Twice(Holding):
    """Lets it take two steps."""

    def step(self, closure=None):
        """Step two times."""
        super().step(closure)
        return super().step(closure)


class Derived(SGD):
    """Calls the step of its base, which has hooks of its own."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.03, momentum=0.9)

    def step(self, closure=None):
        """Step."""
        return super().step(closure)


class Partial(Optimizer):
    """Owns the first weight alone; an optimizer of all steps inside its step."""

    def __init__(self, parameters):
        parameters = list(parameters)
        self.inner = SGD(parameters, lr=0.03, momentum=0.9)
        super().__init__(parameters[:1], {})

    def step(self, closure=None):
        """Step."""
        return self.inner.step(closure)


class Divided(Optimizer):
    """Owns all; weights and biases have optimizers of their own inside, which may be elsewhere."""

    def __init__(self, parameters, rate_of_biases=0.03, elsewhere=()):
        parameters = list(parameters)
        inside = zip((0, 1), (0.03, rate_of_biases), strict=True)
        parts = [SGD(parameters[part::2], lr=rate, momentum=0.9) for part, rate in inside]
        self.inner = [part for at, part in enumerate(parts) if at not in elsewhere]
        self.rest = lambda: [parts[at].step() for at in elsewhere]
        super().__init__(parameters, {})

    def step(self, closure=None):
        """Step all."""
        loss = None if closure is None else closure()
        for part in self.inner:
            part.step()
        self.rest()
        return loss


def trained(make, steps=7, fail_first=False):
    """Train; return the steps that were counted, and the plain weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    net = sngd.reconstruct(net, Config(refresh_every=2, observe_every=1))
    optimizer = make(net.parameters())
    for step in range(steps):
        x = torch.randn(9, 5, generator=torch.Generator().manual_seed(step))
        net.zero_grad()
        net(x).square().mean().backward()
        if fail_first and step == 0:
            with pytest.raises(ZeroDivisionError):
                optimizer.step(lambda: 1 / 0)
        optimizer.step()
    counted = [layer.schedule.steps for layer in sngd.fisher_layers(net).values()]
    return counted, [p.detach() for p in sngd.fold(net).parameters()]


def plain(parameters):
    """Return the optimizer without another around it."""
    return SGD(parameters, lr=0.03, momentum=0.9)


ELSEWHERE = [partial(Divided, elsewhere=parts) for parts in ((), (0,), (1,))]


@pytest.mark.parametrize("make", [Holding, Derived, Partial, *ELSEWHERE])
def test_the_path_is_that_of_the_optimizer_inside(make):
    counted, weights = trained(make)
    assert counted == [7, 7]
    torch.testing.assert_close(weights, trained(plain)[1])


def test_two_steps_inside_of_one_are_one():
    assert trained(Twice)[0] == [7, 7]


def test_a_step_that_raises_hides_none_after_it():
    counted, weights = trained(Holding, fail_first=True)
    assert counted == [7, 7]
    torch.testing.assert_close(weights, trained(plain)[1])


@pytest.mark.parametrize("elsewhere", [(), (0,), (1,)])
def test_weights_and_biases_that_one_optimizer_divides_stay_together(elsewhere):
    torch.manual_seed(0)
    net = sngd.reconstruct(nn.Linear(5, 4))
    net(torch.randn(9, 5)).sum().backward()
    Divided(net.parameters(), elsewhere=elsewhere).step()
    assert sngd.fisher_layers(net)["weight"].spec.has_bias


def test_two_rates_inside_of_one_part_biases():
    torch.manual_seed(0)
    net = sngd.reconstruct(nn.Linear(5, 4))
    net(torch.randn(9, 5)).sum().backward()
    Divided(net.parameters(), rate_of_biases=0.07).step()
    assert not sngd.fisher_layers(net)["weight"].spec.has_bias
