"""Plain SGD on a compiled model walks the path of its reconstruction, and of the reference."""

import copy
from dataclasses import replace

import pytest
import torch

import sngd_compile as sngd
from backend.compiled import (
    AT_NIGHT,
    INNER,
    SETTING,
    Block,
    Tied,
    apart,
    compiled,
    mlp,
    pair,
    sample,
    train,
)
from sngd_compile import SngdWarning
from theorem.descent import NaturalDescent
from theorem.networks import MLP, ConvNet, Residual

pytestmark = pytest.mark.usefixtures("float64", "fresh")

PLAIN_GAIN = pytest.mark.filterwarnings("ignore:.*gain. no rule:sngd_compile.SngdWarning")
NETWORKS = [MLP, ConvNet, pytest.param(Residual, marks=PLAIN_GAIN), Block, Tied]
SETTINGS = [{}, {"momentum": 0.9, "weight_decay": 0.05}]


def shape_of(model) -> tuple[int, ...]:
    return getattr(model, "input_shape", (4, 6))


@pytest.mark.parametrize("sgd", SETTINGS, ids=["plain", "momentum-decay"])
@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_trajectory_is_that_of_the_reconstructed_network(network, inner, sgd):
    model, net = pair(network())
    shape = shape_of(model)
    losses = train(compiled(model, inner), lambda step: [sample(shape, step)], **sgd)
    expected = train(net, lambda step: [sample(shape, step)], **sgd)
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)
    assert apart(model, net) < 1e-10
    layers, others = sngd.fisher_layers(model), sngd.fisher_layers(net)
    for name, layer in layers.items():
        assert layer.rows_seen == others[name].rows_seen > 0
        torch.testing.assert_close(layer.factor, others[name].factor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "network",
    [
        # Inductor meets the Block below, with a checkpoint in it.
        pytest.param(MLP, marks=pytest.mark.slow),
        pytest.param(Residual, marks=[PLAIN_GAIN, pytest.mark.nightly]),
        *(pytest.param(n, marks=pytest.mark.nightly) for n in (ConvNet, Block, Tied)),
    ],
)
def test_inductor_walks_the_same_path(network):
    model, net = pair(network())
    shape = shape_of(model)
    train(compiled(model, "inductor"), lambda step: [sample(shape, step)], momentum=0.9)
    train(net, lambda step: [sample(shape, step)], momentum=0.9)
    assert apart(model, net) < 1e-10


@pytest.mark.parametrize("network", [MLP, ConvNet])
def test_the_trajectory_is_the_handwritten_one(network):
    model = network()
    reference = copy.deepcopy(model)
    descent = NaturalDescent(reference, SETTING, {"lr": 0.05})
    net = compiled(model)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for step in range(12):
        inputs, labels = sample(model.input_shape, step)
        for one, stepper in ((net, optimizer), (reference, descent)):
            one.zero_grad()
            torch.nn.functional.cross_entropy(one(inputs), labels).backward()
            stepper.step()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert (one - other).norm() < 1e-10 * other.norm()


@pytest.mark.parametrize("inner", AT_NIGHT)
def test_micro_batches_of_any_size_add_up(inner):
    model, net = pair(mlp())

    def batches(step):
        return [sample((5,), 10 * step + part, size) for part, size in enumerate((4, 7, 2))]

    train(compiled(model, inner), batches, momentum=0.9)
    train(net, batches, momentum=0.9)
    assert apart(model, net) < 1e-10


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("inner", INNER)
def test_batches_change_their_size(inner, dynamic):
    model, net = pair(mlp())

    def batches(step):
        return [sample((5,), step, 5 + step)]

    train(compiled(model, inner, dynamic=dynamic), batches)
    train(net, batches)
    assert apart(model, net) < 1e-10


@pytest.mark.parametrize("inner", INNER)
def test_what_a_checkpoint_repeats_counts_once(inner):
    model, net = pair(Block(checkpointed=True))
    train(compiled(model, inner), lambda step: [sample((4, 6), step)])
    train(net, lambda step: [sample((4, 6), step)])
    assert apart(model, net) < 1e-10
    rows = {name: layer.rows_seen for name, layer in sngd.fisher_layers(model).items()}
    assert rows == dict.fromkeys(sngd.fisher_layers(net), 10 * 13 * 4)


@pytest.mark.parametrize("root", ["cholesky", "symmetric"])
def test_every_root_gives_the_same_path(root):
    config = replace(SETTING, root=root)
    model, net = pair(mlp())
    train(compiled(model, "aot_eager", config), lambda step: [sample((5,), step)])
    train(net, lambda step: [sample((5,), step)])
    assert apart(model, net) < 1e-9


def test_a_gradient_that_waits_through_a_refresh_stays_natural():
    model, net = pair(mlp())
    both = compiled(model), net
    for one in both:
        train(one, lambda step: [sample((5,), step)], steps=1)
        for size in (8, 5):
            inputs, labels = sample((5,), size, size)
            torch.nn.functional.cross_entropy(one(inputs), labels).backward()
            sngd.refresh_(one)
        torch.optim.SGD(one.parameters(), lr=0.1).step()
    assert apart(model, net) < 1e-10


def test_a_refresh_moves_no_weight():
    model = mlp()
    net = compiled(model)
    train(net, lambda step: [sample((5,), step)], steps=3)
    before = [p.clone() for p in model.parameters()]
    net(sample((5,), 7)[0])
    roots = [layer.root for layer in sngd.fisher_layers(net).values()]
    sngd.refresh_(net)
    assert all(map(torch.equal, before, model.parameters()))
    renewed = [layer.root for layer in sngd.fisher_layers(net).values()]
    assert not any(map(torch.equal, roots, renewed))


def test_optimizers_that_scale_gradients_again_are_named():
    net = compiled(mlp())
    optimizer = torch.optim.Adam(net.parameters())
    net(sample((5,), 0)[0]).sum().backward()
    with pytest.warns(SngdWarning, match="not natural gradient descent"):
        optimizer.step()
