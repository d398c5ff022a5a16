"""A graph holds one opaque op for each weight, so that nothing is generated for it."""

import copy
import operator
from collections import Counter

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.utils import fresh_cache, run_and_get_code
from torch.func import functional_call, grad, jvp, vmap

import sngd_compile as sngd
from backend.compiled import SETTING, mlp, sample, train
from sngd_compile.fisher import spec
from sngd_compile.fisher.spec import FEW
from theorem.networks import ConvNet

pytestmark = pytest.mark.usefixtures("float64", "fresh")


def trained(model: nn.Module, shape: tuple[int, ...], **options) -> nn.Module:
    """Return a reconstruction whose roots are no identities."""
    net = sngd.reconstruct(model, SETTING.replace(**options))
    train(net, lambda step: [sample(shape, step)], steps=2)
    return net


def graphs_of(net: nn.Module, x: torch.Tensor) -> tuple[Counter[str], Counter[str]]:
    """Train on a sum, and count what the forward and the backward graph call."""
    graphs: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    outputs = torch.compile(net, backend=aot_autograd(fw_compiler=record), fullgraph=True)(x)
    (outputs if isinstance(outputs, torch.Tensor) else outputs[0]).sum().backward()
    forward, backward = map(targets, graphs)
    return forward, backward


def targets(graph: torch.fx.GraphModule) -> Counter[str]:
    """Count what a graph calls, but for taking results apart."""
    calls = (node.target for node in graph.graph.nodes if node.op == "call_function")
    return Counter(str(target) for target in calls if target is not operator.getitem)


@pytest.fixture
def _few_outputs_too(monkeypatch):
    monkeypatch.setattr(spec, "FEW", -1)


@pytest.mark.usefixtures("_few_outputs_too")
@pytest.mark.parametrize("fisher", ["shared", "block", "unit"])
def test_a_convolution_has_two_nodes_more_and_its_gradient_one(fisher):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Conv2d(5, 3, 1), nn.Flatten())
    config = SETTING.replace(fisher=fisher, block_size=4, activation="tanh")
    x = torch.randn(2, 3, 3, 3)
    plain, found = graphs_of(model, x), graphs_of(sngd.reconstruct(model, config), x)
    forward, backward = (new - old for new, old in zip(found, plain, strict=True))
    for observing in ("auto_functionalized_v2", "aten.detach.default"):
        del forward[observing]
    assert forward == backward == {"sngd.map_weight.default": 2}


def test_a_bias_that_is_read_alone_maps_no_weight_again():
    net = sngd.reconstruct(nn.LSTM(3, 5), SETTING)
    for calls in graphs_of(net, torch.randn(4, 2, 3)):
        assert calls["sngd.map_weight.default"] == 0


@pytest.mark.parametrize(("outputs", "ops"), [(FEW, 0), (FEW + 1, 1)])
def test_few_outputs_are_mapped_sooner_than_an_op_is_called(outputs, ops):
    net = sngd.reconstruct(nn.Linear(3, outputs), SETTING)
    for calls in graphs_of(net, torch.randn(40, 3)):
        assert calls["sngd.map_weight.default"] == ops


@pytest.mark.slow
@pytest.mark.usefixtures("_few_outputs_too")
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (lambda: mlp(131, 37, 3), (131,)),
        pytest.param(ConvNet, None, marks=pytest.mark.nightly),
    ],
)
def test_inductor_writes_at_most_a_kernel_more_for_each_weight(network, shape):
    model = network()
    reconstructed = sngd.reconstruct(model, SETTING)
    inputs, labels = sample(shape or model.input_shape, 0)
    counts = []
    for net in (model, reconstructed):
        torch._dynamo.reset()
        compiled = torch.compile(net, fullgraph=True)
        with fresh_cache():
            _, codes = run_and_get_code(
                lambda run=compiled: nn.functional.cross_entropy(run(inputs), labels).backward()
            )
        counts.append(sum(code.count("async_compile.cpp_pybinding") for code in codes))
    assert 0 < counts[0] <= counts[1] <= counts[0] + len(sngd.fisher_layers(reconstructed))


@pytest.mark.parametrize("width", [5, 131])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_transforms_see_through(width, backend):
    net = trained(mlp(width, 137, 3), (width,)).eval()
    x, tensors = torch.randn(3, 2, width), dict(net.named_parameters())
    buffers = dict(net.named_buffers())

    def loss(tensors, x):
        return functional_call(net, (tensors, buffers), (x,)).square().sum()

    def per_sample(tensors, x):
        return vmap(grad(loss), in_dims=(None, 0))(tensors, x)

    compiled = torch.compile(per_sample, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(tensors, x), per_sample(tensors, x))


def test_a_jvp_loses_no_tangent():
    net = trained(mlp(5, FEW + 9, 3), (5,)).eval()
    x, t = torch.randn(2, 80, 5)  # so many rows that weights are folded
    tensors = dict(net.named_parameters())
    tangents = {name: torch.randn_like(tensor) for name, tensor in tensors.items()}

    def output(tensors, x):
        return functional_call(net, tensors, (x,))

    def pushed(x, t):
        return jvp(output, (tensors, x), (tangents, t))

    compiled = torch.compile(pushed, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t), pushed(x, t))


def test_gradients_of_gradients_in_a_graph():
    net = trained(mlp(5, 7, 3), (5,))
    compiled = torch.compile(copy.deepcopy(net), backend="eager", fullgraph=True)
    found = []
    for one in (net, compiled):
        x = sample((5,), 3)[0].requires_grad_()
        (first,) = torch.autograd.grad(one(x).sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [x, *one.parameters()]))
    torch.testing.assert_close(found[1], found[0])
