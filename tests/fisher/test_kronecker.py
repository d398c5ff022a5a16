"""`Config(fisher="kronecker")`: the gradient's scale, exactness, and where it shows."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config
from theorem.networks import MLP, ConvNet, batch, loss

CONFIG = Config(fisher="kronecker", max_rows=None)
float64 = pytest.mark.usefixtures("float64")


def observed(model: nn.Module, x: Tensor, config: Config, scale: float = 1.0) -> nn.Module:
    """Reconstruct a classifier and renew its roots from one batch and a mean loss."""
    net = sngd.reconstruct(model, config)
    (scale * F.cross_entropy(net(x), torch.arange(len(x)) % 3)).backward()
    return sngd.refresh_(net)


def linear_net() -> nn.Sequential:
    """Read `[N, 5]`; the activation has a slope everywhere."""
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


@float64
def test_the_batch_size_changes_neither_factor_nor_damping():
    model, x = ConvNet(), torch.randn(6, 3, 7, 6)
    nets = [observed(model, x.repeat(times, 1, 1, 1), CONFIG) for times in (1, 3)]
    layers = [sngd.fisher_layers(net) for net in nets]
    for name, one in layers[0].items():
        other = layers[1][name]
        assert one.kind == "kronecker"
        pairs = [
            (one.output_side.factor, other.output_side.factor),
            (one.root, other.root),
            (one.output_root, other.output_root),
        ]
        for pair in pairs:
            torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-12)
        assert one.output_side.damping == pytest.approx(other.output_side.damping, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e-18, 1e9])
def test_the_scale_of_the_loss_changes_the_root_by_its_inverse(scale):
    model, x = linear_net(), torch.randn(30, 5)
    layers = [sngd.fisher_layers(observed(model, x, CONFIG, s)) for s in (1.0, scale)]
    for name, one in layers[0].items():
        other = layers[1][name]
        assert one.output_root.dtype == torch.float32
        torch.testing.assert_close(other.root, one.root, rtol=1e-4, atol=1e-5)
        roots = [layer.output_root.double() for layer in (one, other)]
        expected, scaled = (root / root.norm() for root in roots)
        torch.testing.assert_close(scaled, expected, rtol=1e-3, atol=1e-4)
        gain = float(roots[1].norm() / roots[0].norm())
        assert gain == pytest.approx(1 / scale, rel=1e-3)


@float64
def test_it_is_the_exact_gauss_newton_matrix_of_a_deep_linear_network_on_one_input():
    model = nn.Sequential(*(nn.Linear(i, o, bias=False) for i, o in ((4, 5), (5, 3), (3, 2))))
    x = torch.randn(1, 4).expand(2, 4)
    net = sngd.reconstruct(model, CONFIG)
    residuals = 2**0.5 * torch.eye(2)  # their outer products have the identity as mean
    outputs = net(x)
    ((outputs - outputs.detach() + residuals).square().sum(1) / 2).mean().backward()
    layers = sngd.fisher_layers(sngd.refresh_(net))
    for index in range(3):
        fisher = layers[f"{index}.weight"]

        def output(weight: Tensor, index: int = index) -> Tensor:
            named = {f"{index}.weight": weight}
            return torch.func.functional_call(model, named, (x[:1],)).flatten()

        jacobian = torch.func.jacrev(output)(model[index].weight.detach()).flatten(1)
        found = torch.kron(fisher.output_side.factor, fisher.factor)
        torch.testing.assert_close(found, jacobian.T @ jacobian, rtol=1e-10, atol=1e-12)


@float64
def test_fewer_rows_stand_for_all():
    x = torch.randn(1, 5).expand(40, 5)
    labels = torch.zeros(40, dtype=torch.int64)
    factors = []
    for rows in (None, 7):
        torch.manual_seed(1)
        net = sngd.reconstruct(linear_net(), CONFIG.replace(max_rows=rows))
        F.cross_entropy(net(x), labels).backward()
        sngd.refresh_(net)
        factors.append(sngd.fisher_layers(net)["0.weight"].output_side.factor)
    torch.testing.assert_close(*factors, rtol=1e-10, atol=0.0)


def test_the_plan_the_graph_and_the_layer_show_it():
    model = linear_net()
    text = str(sngd.explain(model, CONFIG))
    assert "kronecker 6" in text
    assert "notes on" not in text
    net = sngd.reconstruct(model, CONFIG)
    assert "observe_gradient(weight_fisher, local_linear, linear" in str(sngd.graph(net))
    fisher = sngd.fisher_layers(net)["0.weight"]
    assert "kronecker" in repr(fisher)
    torch.testing.assert_close(fisher.output_root, torch.eye(7))
    shared = sngd.fisher_layers(sngd.reconstruct(model))["0.weight"]
    assert shared.output_side is None
    assert shared.output_root is None


@float64
@pytest.mark.parametrize("scale", [1e154, 1e250, float("inf")])
def test_a_gradient_that_is_too_large_to_square_adds_nothing(scale):
    net = linear_net()
    config = Config(fisher="kronecker", observe_every=1)
    x = torch.randn(8, 5)
    usual, hit = (observed(copy.deepcopy(net), x, config) for _ in range(2))
    hit(x).sum().mul(scale).backward()
    usual(x)
    for one in (usual, hit):
        sngd.refresh_(one)
    for one, other in zip(*(sngd.fisher_layers(n).values() for n in (usual, hit)), strict=True):
        assert torch.equal(one.output_side.factor, other.output_side.factor)


@float64
def test_squares_that_overflow_in_a_sum_are_left_out():
    net = observed(linear_net(), torch.randn(8, 5), CONFIG.replace(observe_every=1))
    sides = [layer.output_side for layer in sngd.fisher_layers(net).values()]
    before = [side.factor.clone() for side in sides]
    for side in sides:
        side.total.fill_(torch.finfo(torch.float64).max)
        side.tally[1] = 1
    net(torch.randn(8, 5))
    sngd.refresh_(net)
    assert all(torch.equal(side.factor, old) for side, old in zip(sides, before, strict=True))
    assert not any(side.total.any() for side in sides)


@float64
def test_without_a_gradient_the_root_stays_the_identity():
    net = sngd.reconstruct(linear_net(), CONFIG)
    (0 * net(torch.randn(8, 5)).sum()).backward()
    sngd.refresh_(net)
    for fisher in sngd.fisher_layers(net).values():
        torch.testing.assert_close(fisher.output_root, torch.eye(fisher.layout.outputs))


@float64
@pytest.mark.parametrize("network", [MLP, ConvNet])
def test_a_compiled_network_observes_as_an_eager_one(network):
    config = CONFIG.replace(refresh_every=2)
    nets = [sngd.reconstruct(model, config) for model in [network()] for _ in "ab"]
    compiled = torch.compile(nets[1], backend="aot_eager", fullgraph=True)
    for trained, net in zip((nets[0], compiled), nets, strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for number in range(5):
            optimizer.zero_grad()
            inputs, labels = batch(net, number)
            (loss(trained(inputs), labels) / len(labels)).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            optimizer.step()
    for one, other in zip(*(sngd.fold(net).parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@float64
def test_what_follows_may_change_the_output_in_place():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Flatten())
    other = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten())
    other.load_state_dict(model.state_dict())
    x, factors = torch.randn(4, 2, 5, 5), []
    for chosen in (model, other):
        net = sngd.reconstruct(chosen, CONFIG)
        net(x).square().mean().backward()
        layers = sngd.fisher_layers(sngd.refresh_(net))
        factors.append(layers["0.weight"].output_side.factor)
    assert torch.equal(*factors)
    assert factors[0].any()
