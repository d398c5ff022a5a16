"""Transforms of functions, as gradients of each sample and ensembles have them, are observed."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, stack_module_state, vmap

import sngd_compile as sngd
from api import EVERY_STEP, FISHERS, batch, mlp, rows_of, sgd, train, trained

pytestmark = pytest.mark.usefixtures("float64")

LAYERS = {
    "linear": (lambda: nn.Linear(5, 3), (4, 3, 5)),
    "grouped convolution": (lambda: nn.Conv2d(4, 6, (2, 3), groups=2), (4, 3, 4, 3, 5)),
    "transposed convolution": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2), (4, 3, 2, 5)),
    "normalisation": (lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)), (4, 3, 5)),
    "bilinear": (lambda: Twice(), (4, 3, 5)),
    "as written": (lambda: AsWritten(), (4, 3, 5)),
}


class Twice(nn.Module):
    """One input, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.Bilinear(5, 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the input by itself."""
        return self.pairs(x, x)


class AsWritten(nn.Module):
    """A forward that has no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Depend on something that no graph has."""
        return x @ self.table.T if torch.is_grad_enabled() else torch.zeros(())


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("kind", ["shared", "sketch", "unit"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_mapped_forward_is_observed_as_the_whole_batch(name, kind):
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    model, x = build(), torch.randn(shape)
    nets = [sngd.reconstruct(model, FISHERS[kind]) for _ in range(2)]
    outputs = [nets[0](x.flatten(0, 1)), vmap(nets[1])(x).flatten(0, 1)]
    torch.testing.assert_close(*outputs)
    for net, output in zip(nets, outputs, strict=True):
        output.square().mean().backward()
        sngd.refresh_(net)
    layers = [sngd.fisher_layers(net).values() for net in nets]
    for one, other in zip(*layers, strict=True):
        assert one.rows_seen == other.rows_seen > 0
        torch.testing.assert_close(one.root, other.root, rtol=1e-9, atol=1e-11)
    gradients = [[p.grad for p in net.parameters()] for net in nets]
    torch.testing.assert_close(*gradients)


def of_each_sample(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the gradients of the loss of each sample, by the name of the parameter."""

    def loss(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(net, parameters, (one,)).square().mean()

    parameters = {name: p.detach() for name, p in net.named_parameters()}
    return vmap(grad(loss), (None, 0))(parameters, x)


# The statistics of `kronecker` are those of the loss that is differentiated, here of a sample.
@pytest.mark.parametrize("kind", ["shared", "symmetric", "diagonal", "unit"])
def test_gradients_of_each_sample_train_as_their_mean(kind):
    config = FISHERS[kind]
    nets = [sngd.reconstruct(mlp(), config)]
    nets.append(sngd.reconstruct(sngd.fold(nets[0]), config))
    train(nets[0])
    optimizer = sgd(nets[1])
    for step in range(5):
        of_each = of_each_sample(nets[1], batch(step))
        for name, parameter in nets[1].named_parameters():
            parameter.grad = of_each[name].mean(0)
        optimizer.step()
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    assert rows_of(nets[0]) == rows_of(nets[1])


def test_derivatives_by_inputs_of_each_sample_are_part_of_a_loss():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    optimizer = sgd(net)
    for step in range(3):
        optimizer.zero_grad()
        found = vmap(hessian(lambda x: net(x)[0]))(batch(step))
        plain = sngd.fold(net)
        expected = vmap(hessian(lambda x, plain=plain: plain(x)[0]))(batch(step))
        torch.testing.assert_close(found, expected)
        found.square().mean().backward()
        optimizer.step()
    assert set(rows_of(net)) == {3 * 7}


def test_an_ensemble_in_train_mode_is_its_members():
    nets = [trained() for _ in range(3)]
    parameters, buffers = stack_module_state(nets)
    tally = buffers["0.weight_fisher.tally"]
    before = tally[:, 0].clone()
    member = nets[0].to("meta")
    x = batch(9)
    expected = [sngd.fold(net)(x) for net in nets[1:]]
    found = vmap(lambda *state: functional_call(member, state, (x,)))(parameters, buffers)
    for one, other in zip(found[1:], expected, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(tally[:, 0], before + len(x))


def train_mapped(net: nn.Module) -> None:
    """Train on forward passes that are mapped by themselves."""
    optimizer = sgd(net)
    for step in range(3):
        optimizer.zero_grad()
        vmap(net)(batch(step)).square().mean().backward()
        optimizer.step()


def test_what_a_mapped_forward_does_not_show_is_named():
    net = sngd.reconstruct(mlp(), FISHERS["kronecker"])
    with pytest.warns(sngd.SngdWarning, match=r"0.weight.*no output gradient has been observed"):
        train_mapped(net)
