"""Inputs at the edge: empty, single, zero, constant, rank-deficient, huge, tiny."""

import math

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from api import EVERY_STEP, apart, batch, mlp, rows_of, sgd, steps_of, train
from sngd_compile import Config, SngdWarning

pytestmark = pytest.mark.usefixtures("float64")
BATCHES = {
    "one row": lambda step: batch(step, size=1),
    "zeros": lambda step: torch.zeros(7, 5),
    "ones": lambda step: torch.ones(7, 5),
    "constant": lambda step: batch(0, size=1).expand(7, 5),
    "one feature": lambda step: batch(step) * torch.tensor([1.0, 0, 0, 0, 0]),
    "rank two": lambda step: batch(step, width=2) @ batch(0, 2),
    "huge": lambda step: batch(step) * 1e20,
    "tiny": lambda step: batch(step) * 1e-20,
    "very tiny": lambda step: batch(step) * 1e-160,
    "one huge feature": lambda step: batch(step) * torch.tensor([1e12, 1, 1, 1, 1]),
    "shifted": lambda step: batch(step) + 1e6,
    "empty now and then": lambda step: batch(step, size=7 * (step % 2)),
}


def mean_square(outputs):
    return outputs.square().sum() / max(1, len(outputs))


@pytest.mark.parametrize("root", ["cholesky", "symmetric", "denman_beavers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.filterwarnings("ignore:.*too large to square")
def test_training_stays_finite_and_folds(kind, dtype, root):
    net = sngd.reconstruct(mlp().to(dtype), EVERY_STEP.replace(root=root))
    optimizer = sgd(net)
    for step in range(6):
        x = BATCHES[kind](step).to(dtype)
        optimizer.zero_grad()
        mean_square(net(x)).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    assert steps_of(net) == [6, 6]
    plain = sngd.fold(net)
    assert all(bool(p.isfinite().all()) for p in plain.parameters())
    x = BATCHES[kind](1).to(dtype)
    scale = 1 + float(net(x).detach().abs().max()) + float(x.abs().max())
    assert apart(net, plain, x) < 1e3 * torch.finfo(dtype).eps * scale


SINGULAR = {
    "zeros": torch.zeros(7, 5),
    "constant": torch.ones(7, 5),
    "one row": torch.arange(5.0)[None],
    "empty": torch.zeros(0, 5),
}


@pytest.mark.parametrize("root", ["cholesky", "symmetric", "denman_beavers"])
@pytest.mark.parametrize("kind", SINGULAR)
def test_a_singular_factor_without_damping_keeps_the_root(kind, root):
    config = EVERY_STEP.replace(root=root, damping_rel_trace=0.0, damping_abs=0.0)
    net = sngd.reconstruct(nn.Linear(5, 3), config)
    x = SINGULAR[kind].double()
    net(x)
    weight, layer = net.weight.clone(), net.weight_fisher
    if kind == "empty":
        sngd.refresh_(net)
        assert layer.rows_seen == 0
    else:
        with pytest.warns(SngdWarning, match="weight: its damped factor is not positive definite"):
            sngd.refresh_(net)
    assert torch.equal(layer.root, torch.eye(6))
    assert torch.equal(net.weight, weight)
    train(net)
    assert bool(net.weight.isfinite().all())


def test_zeros_without_bias_and_relative_damping_keep_the_root():
    config = EVERY_STEP.replace(damping_abs=0.0)
    net = sngd.reconstruct(nn.Linear(5, 3, bias=False), config)
    net(torch.zeros(7, 5))
    sngd.refresh_(net)
    assert torch.equal(net.weight_fisher.root, torch.eye(5))
    net(batch())
    sngd.refresh_(net)
    assert not torch.equal(net.weight_fisher.root, torch.eye(5))


def test_absolute_damping_alone_is_enough():
    config = EVERY_STEP.replace(damping_rel_trace=0.0, damping_abs=0.5)
    net = sngd.reconstruct(nn.Linear(5, 3, bias=False), config)
    net(torch.zeros(7, 5))
    sngd.refresh_(net)
    torch.testing.assert_close(net.weight_fisher.root, torch.eye(5) * 0.5**-0.5)
    assert net.weight_fisher.damping == 0.5


def test_an_empty_batch_counts_as_a_step_without_rows():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    optimizer = sgd(net)
    outputs = net(torch.zeros(0, 5))
    assert outputs.shape == (0, 3)
    outputs.sum().backward()
    optimizer.step()
    assert (rows_of(net), steps_of(net)) == ([0, 0], [1, 1])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("root", ["cholesky", "symmetric", "denman_beavers"])
def test_layers_of_one_weight(bias, root):
    model = nn.Sequential(nn.Linear(1, 1, bias=bias), nn.Unflatten(1, (1, 1)), nn.Conv1d(1, 1, 1))
    net = sngd.reconstruct(model, EVERY_STEP.replace(root=root))
    train(net, inputs=lambda step: batch(step, width=1))
    x = batch(9, width=1)
    assert [layer.size for layer in sngd.fisher_layers(net).values()] == [1 + bias, 2]
    assert apart(net, sngd.fold(net), x) < 1e-13
    if not bias:
        layer = sngd.fisher_layers(net)["0.weight"]
        expected = (layer.factor + layer.damping).rsqrt()
        torch.testing.assert_close(layer.root, expected)


def test_many_more_features_than_rows():
    """Fewer rows than a sketch has columns, and it is the exact factor."""
    x, networks = batch(9, width=300), []
    for rank in (None, 48):
        config = Config(refresh_every=1, observe_every=1, rank=rank, step_budget=math.inf)
        torch.manual_seed(0)
        net = sngd.reconstruct(nn.Linear(300, 2), config)
        train(net, inputs=lambda step: batch(step, size=2, width=300))
        assert apart(net, sngd.fold(net), x) < 1e-9
        networks.append(net)
    exact, sketched = (net.weight_fisher for net in networks)
    assert (exact.kind, sketched.kind) == ("shared", "sketch")
    damped = exact.scale * exact.factor + exact.damping * torch.eye(301)
    for layer in (exact, sketched):
        identity = layer.root @ damped @ layer.root.mT
        torch.testing.assert_close(identity, torch.eye(301), rtol=0, atol=1e-8)
    assert apart(*networks, x) < 1e-9
