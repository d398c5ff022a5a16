"""`mode=` of `torch.compile` leaves the statistics and the roots what they are in eager."""

import copy

import pytest
import torch

import sngd_compile as sngd
from backend.compiled import SETTING, Block, mlp, sample, train
from compile.test_one_graph import assert_equal

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float64", "fresh")]
# In the default mode, each test that compiles with inductor does.
MODES = [
    pytest.param("default", marks=pytest.mark.nightly),
    "reduce-overhead",
    "max-autotune-no-cudagraphs",
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("network", "shape"),
    [(mlp, (5,)), pytest.param(Block, (4, 6), marks=pytest.mark.nightly)],
)
def test_training_follows_eager(network, shape, mode):
    model = network()
    eager = sngd.reconstruct(copy.deepcopy(model), SETTING)
    net = torch.compile(sngd.reconstruct(model, SETTING), mode=mode, fullgraph=True)
    losses = train(net, lambda step: [sample(shape, step)], momentum=0.9)
    expected = train(eager, lambda step: [sample(shape, step)], momentum=0.9)
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)
    assert_equal(net, eager)


def test_a_cuda_graph_never_holds_what_looks_at_a_gate():
    for name in ("observe_", "observe_gradient_", "recurrent_layer", "recurrent_layer_backward"):
        assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.sngd, name).default.tags


def test_micro_batches_and_eval_between_steps_follow_eager():
    model = mlp()
    eager = sngd.reconstruct(copy.deepcopy(model), SETTING)
    net = torch.compile(sngd.reconstruct(model, SETTING), mode="reduce-overhead", fullgraph=True)
    for one in (net, eager):
        for first in (0, 3, 6):
            one.train()
            train(one, lambda step: [sample((5,), step), sample((5,), step + 50)], 3, first)
            one.eval()
            with torch.no_grad():
                one(sample((5,), first)[0])
    assert_equal(net, eager)
