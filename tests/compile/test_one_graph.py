"""A reconstructed network compiles to one graph, and does there what it does in eager."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import sngd_compile as sngd
from backend.compiled import INNER, SETTING, Block, Tied, mlp, sample, train
from theorem.networks import MLP, ConvNet, Residual

pytestmark = pytest.mark.usefixtures("float64", "fresh")
slow, nightly = pytest.mark.slow, pytest.mark.nightly
NETWORKS = [MLP, ConvNet, Residual, Block, Tied]


def shape_of(model: nn.Module) -> tuple[int, ...]:
    return getattr(model, "input_shape", (4, 6))


def pair(model: nn.Module, backend, **options):
    """Return a compiled and an eager reconstruction of the same model, and the counter."""
    counter = CompileCounterWithBackend(backend)
    eager = sngd.reconstruct(copy.deepcopy(model), SETTING)
    net = sngd.reconstruct(model, SETTING)
    return torch.compile(net, backend=counter, fullgraph=True, **options), eager, counter


def assert_equal(net: nn.Module, eager: nn.Module) -> None:
    """Compare weights, factors, roots and counts."""
    for one, other in zip(net.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    layers = list(sngd.fisher_layers(eager).values())
    for one, other in zip(sngd.fisher_layers(net).values(), layers, strict=True):
        assert one.rows_seen == other.rows_seen > 0
        torch.testing.assert_close(one.factor, other.factor, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one.root, other.root, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_training_equals_eager_in_one_graph(network, backend):
    net, eager, counter = pair(network(), backend)
    shape = shape_of(eager)
    losses = train(net, lambda step: [sample(shape, step)], momentum=0.9)
    expected = train(eager, lambda step: [sample(shape, step)], momentum=0.9)
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)
    assert_equal(net, eager)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "network",
    # Inductor meets the Block below, with a checkpoint in it.
    [pytest.param(n, marks=slow if n is MLP else nightly) for n in NETWORKS],
)
def test_inductor_equals_eager_in_one_graph(network):
    net, eager, counter = pair(network(), "inductor")
    shape = shape_of(eager)
    losses = train(net, lambda step: [sample(shape, step)], momentum=0.9)
    expected = train(eager, lambda step: [sample(shape, step)], momentum=0.9)
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)
    assert_equal(net, eager)
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", INNER)
def test_each_mode_has_one_graph(backend):
    net, eager, counter = pair(mlp(), backend)
    for one in (net, eager):
        for first in (0, 3, 6):
            one.train()
            train(one, lambda step: [sample((5,), step)], steps=3, first=first)
            one.eval()
            with torch.no_grad():
                one(sample((5,), first)[0])
    assert_equal(net, eager)
    assert counter.frame_count == 2


@pytest.mark.parametrize("backend", INNER)
def test_micro_batches_of_changing_size_need_two_graphs_at_most(backend):
    net, eager, counter = pair(mlp(), backend)

    def batches(step):
        return [sample((5,), 10 * step + part, step + 4 + part) for part in range(2)]

    train(net, batches, momentum=0.9)
    train(eager, batches, momentum=0.9)
    assert_equal(net, eager)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("backend", INNER)
def test_dynamic_shapes_need_one_graph(backend):
    net, eager, counter = pair(mlp(), backend, dynamic=True)
    for one in (net, eager):
        train(one, lambda step: [sample((5,), step, 9 + step)])
    assert_equal(net, eager)
    assert counter.frame_count == 1


# Run in eager, the graph's checkpoint refuses statistics that its own region has changed.
@pytest.mark.parametrize("backend", INNER[1:])
def test_a_checkpoint_inside_counts_once(backend):
    net, eager, counter = pair(Block(checkpointed=True), backend)
    for one in (net, eager):
        train(one, lambda step: [sample((4, 6), step)], steps=6)
    assert_equal(net, eager)
    assert {layer.rows_seen for layer in sngd.fisher_layers(net).values()} == {6 * 13 * 4}
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", INNER)
def test_a_checkpoint_outside_counts_once(backend):
    net, eager, _ = pair(mlp(), backend)

    class Outer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    for one in (net, eager):
        train(Outer(one), lambda step: [sample((5,), step)], steps=6)
    assert_equal(net, eager)
    assert {layer.rows_seen for layer in sngd.fisher_layers(net).values()} == {6 * 13}


@pytest.mark.parametrize("backend", INNER)
def test_autocast_keeps_statistics_wide(backend):
    torch.set_default_dtype(torch.float32)
    net, eager, counter = pair(mlp(), backend)
    for one in (net, eager):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.03)
        for step in range(5):
            inputs, labels = sample((5,), step)
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(one(inputs.float()), labels)
            loss.backward()
            optimizer.step()
    layers = sngd.fisher_layers(eager).values()
    for one, other in zip(sngd.fisher_layers(net).values(), layers, strict=True):
        assert one.factor.dtype == torch.float32
        assert one.rows_seen == other.rows_seen
        torch.testing.assert_close(one.factor, other.factor, rtol=2e-2, atol=2e-2)
    assert counter.frame_count == 1


def test_a_second_compilation_and_a_deep_copy_go_on():
    net, eager, _ = pair(mlp(), "aot_eager")
    for one in (net, eager):
        train(one, lambda step: [sample((5,), step)], steps=4)
    again = torch.compile(net._orig_mod, backend="eager", fullgraph=True)
    twin = torch.compile(copy.deepcopy(net._orig_mod), backend="aot_eager", fullgraph=True)
    for one in (again, twin, eager):
        train(one, lambda step: [sample((5,), step)], steps=4, first=4)
    assert_equal(again, eager)
    assert_equal(twin, eager)


def test_dynamo_explains_a_reconstructed_network():
    net = sngd.reconstruct(mlp(), SETTING)
    explained = torch._dynamo.explain(net)(sample((5,), 0)[0])
    assert explained.graph_count == 1
    assert explained.graph_break_count == 0
