"""Compiled on a GPU, recorded as CUDA graphs too: the path of eager execution."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import sngd_compile as sngd
from backend.compiled import Block, compiled
from device import DEVICE, SETTING, assert_same_state, train
from theorem.networks import ConvNet

MODES = ["default", "reduce-overhead", "max-autotune-no-cudagraphs"]


@pytest.fixture(autouse=True)
def fresh():
    """Forget what was compiled, and what was counted."""
    torch.compiler.reset()
    counters.clear()


def wide_mlp() -> nn.Module:
    """Layers wide enough for products by blocks."""
    layers = nn.Linear(200, 150), nn.ReLU(), nn.Linear(150, 3)
    net = nn.Sequential(*layers)
    net.input_shape = (200,)
    return net


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("network", [wide_mlp, ConvNet, Block])
def test_it_follows_eager(network, mode):
    model = network().to(DEVICE)
    shape = model.input_shape
    eager = sngd.reconstruct(copy.deepcopy(model), SETTING)
    net = sngd.reconstruct(model, SETTING)
    fast = torch.compile(net, mode=mode, fullgraph=True)
    expected = train(eager, shape, 12)
    assert train(net, shape, 12, trained=fast) == pytest.approx(expected, rel=1e-8)
    assert_same_state(net, eager)
    if mode == "reduce-overhead":
        assert counters["inductor"]["cudagraph_skips"] == 0


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("network", [wide_mlp, ConvNet])
def test_the_backend_follows_a_reconstructed_network(network):
    model = network().to(DEVICE)
    shape = model.input_shape
    eager = sngd.reconstruct(copy.deepcopy(model), SETTING)
    fast = compiled(model, "inductor", SETTING)
    expected = train(eager, shape, 8)
    assert train(model, shape, 8, trained=fast) == pytest.approx(expected, rel=1e-8)
