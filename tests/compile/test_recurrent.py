"""A reconstructed LSTM, GRU or RNN is a few nodes of one graph, whatever the sequence's length."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend, EagerAndRecordGraphs

import sngd_compile as sngd
from backend.compiled import SETTING, sample, train
from compile.test_one_graph import assert_equal, pair

pytestmark = [
    pytest.mark.usefixtures("float64", "fresh"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]
BOTH = {"num_layers": 2, "bidirectional": True}


class Reader(nn.Module):
    """Classify sequences `[N, T, 6]` by the last output of a recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase], with_states: bool = False, **options: object):
        super().__init__()
        self.layer = kind(6, 4, batch_first=True, **options)
        places = self.layer.num_layers * (1 + self.layer.bidirectional)
        wide = self.layer.proj_size or 4
        self.head = nn.Linear(wide * (1 + self.layer.bidirectional), 3)
        self.with_states, self.places = with_states, (places, wide)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer, from states made of the inputs where it has some."""
        states = None
        if self.with_states:
            places, wide = self.places
            states = torch.stack([x[:, 0, :wide]] * places)
            states = (states, states) if isinstance(self.layer, nn.LSTM) else states
        return self.head(self.layer(x, states)[0][:, -1])


class Cells(nn.Module):
    """Classify sequences `[N, T, 6]` by a cell."""

    def __init__(self, kind: type[nn.RNNCellBase]):
        super().__init__()
        self.cell, self.head = kind(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Take the steps one by one."""
        state = None
        for now in x.unbind(1):
            state = self.cell(now, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


MODELS = {
    "LSTM": lambda: Reader(nn.LSTM),
    "LSTM, layers, directions and states": lambda: Reader(nn.LSTM, True, **BOTH),
    "LSTM, projected": lambda: Reader(nn.LSTM, proj_size=3, bidirectional=True),
    "GRU": lambda: Reader(nn.GRU, True),
    "GRU, without biases": lambda: Reader(nn.GRU, bias=False, **BOTH),
    "RNN": lambda: Reader(nn.RNN, **BOTH),
    "RNN, relu": lambda: Reader(nn.RNN, nonlinearity="relu"),
    "LSTMCell": lambda: Cells(nn.LSTMCell),
    "GRUCell": lambda: Cells(nn.GRUCell),
    "RNNCell": lambda: Cells(nn.RNNCell),
}


WIDELY_USED = ("LSTM", "GRU")
COMPILED = [
    pytest.param(n, marks=pytest.mark.slow if n in WIDELY_USED else pytest.mark.nightly)
    for n in MODELS
]


def assert_trains_like_eager(model: nn.Module, backend: str) -> None:
    """Compare losses, weights, factors and roots; count the graphs."""
    net, eager, counter = pair(model, backend)
    losses = train(net, lambda step: [sample((4, 6), step)], momentum=0.9)
    expected = train(eager, lambda step: [sample((4, 6), step)], momentum=0.9)
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)
    assert_equal(net, eager)
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODELS)
def test_training_equals_eager_in_one_graph(name, backend):
    assert_trains_like_eager(MODELS[name](), backend)


@pytest.mark.parametrize("name", COMPILED)
def test_inductor_equals_eager_in_one_graph(name):
    assert_trains_like_eager(MODELS[name](), "inductor")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_dropout_between_layers_draws_the_same_numbers(kind):
    net, eager, counter = pair(Reader(kind, num_layers=3, dropout=0.5), "eager")
    losses = []
    for one in (net, eager):
        torch.manual_seed(3)
        losses.append(train(one, lambda step: [sample((4, 6), step)]))
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-12)
    assert_equal(net, eager)
    assert counter.frame_count == 1


def test_the_graph_does_not_grow_with_the_sequence():
    sizes = []
    for length in (3, 30):
        torch._dynamo.reset()
        recorder = EagerAndRecordGraphs()
        net = torch.compile(
            sngd.reconstruct(Reader(nn.LSTM, **BOTH), SETTING), backend=recorder, fullgraph=True
        )
        net(sample((length, 6), 0)[0])
        (graph,) = recorder.graphs
        sizes.append(len(graph.graph.nodes))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_lengths_that_change_need_two_graphs_at_most(backend):
    net, eager, counter = pair(Reader(nn.GRU), backend, dynamic=True)
    for one in (net, eager):
        train(one, lambda step: [sample((4 + step, 6), step)])
    assert_equal(net, eager)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_eval_computes_the_same_and_observes_nothing(kind):
    net, eager, _ = pair(Reader(kind, **BOTH), "eager")
    for one in (net, eager):
        train(one, lambda step: [sample((4, 6), step)], steps=4)
        one.eval()
    x = sample((4, 6), 9)[0]
    with torch.no_grad():
        torch.testing.assert_close(net(x), eager(x), rtol=1e-10, atol=1e-12)
    assert_equal(net, eager)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_autocast_leaves_the_layer_in_the_dtype_of_its_weights(backend):
    torch.set_default_dtype(torch.float32)
    model = Reader(nn.LSTM)
    net, _, counter = pair(model, backend)
    x = sample((4, 6), 0)[0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = net(x).float().square().sum()
    loss.backward()
    layer = sngd.fisher_layers(net._orig_mod)["layer.weight_hh_l0"]
    assert layer.rows_seen == 13 * 4
    assert layer.factor.dtype == torch.float32
    assert net.layer.weight_hh_l0_prime.grad.isfinite().all()
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_ops_obey_torch_s_own_checks():
    layer = nn.LSTM(2, 3, bidirectional=True)
    states = [torch.randn(2, 5, 3, requires_grad=True) for _ in range(2)]
    data = torch.randn(4, 5, 2, requires_grad=True)
    params = list(layer.parameters())
    arguments = ("lstm", data, None, states, params, True, True, True)
    torch.library.opcheck(torch.ops.sngd.recurrent_layer.default, arguments)


def test_a_plain_recurrent_layer_is_refused_as_before():
    sngd.reconstruct(nn.LSTM(6, 4))
    with pytest.raises(Unsupported, match="does not support RNN, GRU, or LSTM"):
        torch.compile(nn.LSTM(6, 4), backend="eager", fullgraph=True)(torch.randn(3, 2, 6))
    assert not torch._dynamo.config.allow_rnn


def test_a_copy_and_a_folded_network_compile_or_are_refused_alike():
    net = sngd.reconstruct(Reader(nn.LSTM), SETTING)
    counter = CompileCounterWithBackend("eager")
    twin = torch.compile(copy.deepcopy(net), backend=counter, fullgraph=True)
    x = sample((4, 6), 0)[0]
    torch.testing.assert_close(twin(x), net(x))
    with pytest.raises(Unsupported, match="does not support RNN, GRU, or LSTM"):
        torch.compile(sngd.fold(net), backend="eager", fullgraph=True)(x)
