"""Numbers that are not finite: nothing is learnt from them, one warning says where they came in."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import sngd_compile as sngd
from api import EVERY_STEP, batch, mlp, rows_of, sgd, steps_of, train
from sngd_compile import SngdWarning
from sngd_compile.fisher import observe

pytestmark = pytest.mark.usefixtures("float64")
NAN, INFINITY = float("nan"), float("inf")


def poisoned(value, where=(2, 3)):
    x = batch(5)
    x[where] = value
    return x


def fresh(**changes):
    return sngd.reconstruct(mlp(), EVERY_STEP.replace(**changes))


def finite(net):
    return all(bool(value.isfinite().all()) for value in net.state_dict().values())


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
def test_a_batch_that_is_not_finite_is_not_observed(value):
    net, expected = fresh(), fresh()
    expected.load_state_dict(net.state_dict())
    net(poisoned(value))
    for each in (net, expected):
        each(batch())
    assert rows_of(net) == rows_of(expected) == [7, 7]
    with pytest.warns(SngdWarning) as found:
        sngd.refresh_(net)
    sngd.refresh_(expected)
    (text,) = [str(warning.message) for warning in found]
    assert text.startswith("2 weights, 0.weight, 2.weight: 1 forward pass(es)")
    assert "not finite" in text
    for name, layer in sngd.fisher_layers(net).items():
        assert torch.equal(layer.factor, sngd.fisher_layers(expected)[name].factor)


def convolutional():
    """Make three kinds of layers with biases, for inputs `[N, 5]`."""
    image = [nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 2, 3, padding=1), nn.GroupNorm(1, 2)]
    return nn.Sequential(*image, nn.Flatten(), nn.Tanh(), nn.Linear(10, 3))


@pytest.mark.parametrize("model", [mlp, convolutional])
@pytest.mark.parametrize("fisher", ["shared", "diagonal", "block", "unit", "kronecker"])
def test_a_pass_is_rejected_without_waiting_for_a_device(model, fisher, monkeypatch):
    net = sngd.reconstruct(model(), EVERY_STEP.replace(fisher=fisher, block_size=2))
    expected = copy.deepcopy(net)
    expected(batch())
    sngd.refresh_(expected)
    asked = []
    monkeypatch.setattr(observe, "reads_without_sync", asked.append)
    net(poisoned(NAN))
    net(batch())
    with pytest.warns(SngdWarning, match=r"1 forward pass\(es\)"):
        sngd.refresh_(net)
    assert set(asked) == {torch.device("cpu")}
    for name, layer in sngd.fisher_layers(net).items():
        assert layer.rows_seen == sngd.fisher_layers(expected)[name].rows_seen > 0
        assert torch.equal(layer.factor, sngd.fisher_layers(expected)[name].factor)


@pytest.mark.parametrize("value", [NAN, INFINITY])
@pytest.mark.parametrize("clip", [None, clip_grad_norm_, clip_grad_value_])
def test_a_step_from_it_is_skipped(value, clip):
    net = fresh()
    optimizer = train(net)
    before = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.zero_grad()
    net(poisoned(value)).square().mean().backward()
    if clip:
        clip(net.parameters(), 1.0)
    with pytest.warns(SngdWarning, match="gradient is not finite") as found:
        optimizer.step()
    assert len(found) == 1
    assert str(found[0].message).split(":")[0] in sngd.fisher_layers(net)
    assert steps_of(net) == [5, 5]
    for name, now in net.state_dict().items():
        assert torch.equal(now, before[0][name]) or name.endswith("tally")
    for state, old in zip(
        optimizer.state_dict()["state"].values(), before[1].values(), strict=True
    ):
        assert torch.equal(state["momentum_buffer"], old["momentum_buffer"])


def test_training_goes_on_and_warns_no_more():
    net = fresh()
    optimizer = sgd(net)
    with pytest.warns(SngdWarning) as found:
        train(net, optimizer, inputs=lambda step: poisoned(NAN) if step % 2 else batch(step))
    texts = [str(warning.message) for warning in found]
    assert len([text for text in texts if "gradient" in text]) == 1
    assert len([text for text in texts if "forward pass" in text]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, optimizer, inputs=lambda step: poisoned(NAN) if step % 2 else batch(step))
    assert finite(net)
    assert steps_of(net) == [6, 6]


def test_only_the_layers_that_see_it_reject_it():
    class Masked(nn.Module):
        """A layer whose output is not finite, and whose gradient is."""

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(torch.log(self.first(x) - 1e3))

    net = sngd.reconstruct(Masked(), EVERY_STEP)
    net(batch())
    assert rows_of(net) == [7, 0]
    with pytest.warns(SngdWarning, match=r"last\.weight: 1 forward"):
        sngd.refresh_(net)


def test_a_loss_that_is_not_finite():
    net = fresh()
    optimizer = train(net)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.zero_grad()
    (net(batch()).square().mean() * INFINITY).backward()
    norm = clip_grad_norm_(net.parameters(), 1.0)
    assert not norm.isfinite()
    with pytest.warns(SngdWarning, match="the weights stay as they are"):
        optimizer.step()
    assert all(map(torch.equal, net.parameters(), before))


def test_parameters_outside_the_layers_count_too():
    model = nn.Sequential(mlp(), nn.LayerNorm(3))
    net = sngd.reconstruct(model, EVERY_STEP, overrides={"1.*": None})
    optimizer = train(net)
    net[1].weight.grad[0] = NAN
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.warns(SngdWarning, match="not reconstructed"):
        optimizer.step()
    assert all(map(torch.equal, net.parameters(), before))


def test_gradients_that_overflow_their_sum_are_finite():
    net = sngd.reconstruct(mlp().float(), EVERY_STEP.replace(early_refreshes=()))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-38)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 3e38)
    net[0].weight_prime.grad[0] *= -1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert steps_of(net) == [1, 1]


def test_a_closure_that_is_not_finite():
    net = fresh()
    optimizer = sgd(net)

    def closure():
        optimizer.zero_grad()
        loss = net(poisoned(NAN)).square().mean()
        loss.backward()
        return loss

    before = [p.detach().clone() for p in net.parameters()]
    with pytest.warns(SngdWarning, match="gradient is not finite"):
        loss = optimizer.step(closure)
    assert loss.isnan()
    assert all(map(torch.equal, net.parameters(), before))


def test_inputs_too_large_to_square_are_not_observed():
    net = sngd.reconstruct(nn.Linear(5, 3, dtype=torch.float32), EVERY_STEP)
    net(batch().float() * 1e20)
    net(batch().float())
    assert rows_of(net) == [7]
    with pytest.warns(SngdWarning, match="too large to square"):
        sngd.refresh_(net)
    assert finite(net)


class Complex(nn.Module):
    """A linear layer, and a parameter of complex numbers beside it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 4)
        self.factor = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128))

    def forward(self, x):
        """Return real numbers."""
        return torch.view_as_real(self.layer(x).to(torch.complex128) @ self.factor)


@pytest.mark.parametrize("part", [NAN, complex(0, INFINITY)])
def test_complex_gradients_are_two_real_ones(part):
    net = sngd.reconstruct(Complex())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        net(torch.randn(7, 5)).square().sum().backward()
        if step < 2:
            optimizer.step()
    net.factor.grad[1, 2] = part
    before = copy.deepcopy(net.state_dict())
    with pytest.warns(SngdWarning, match="is not finite"):
        optimizer.step()
    for name, value in net.named_parameters():
        assert torch.equal(value, before[name])
