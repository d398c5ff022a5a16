"""One state for each parameter, whatever frames and models use it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import sngd_compile as sngd
from api import AS_IN_THE_PAPER
from backend.compiled import AT_NIGHT, INNER, SETTING, apart, compiled, mlp, pair, sample, train
from sngd_compile import ConfigError

pytestmark = [
    pytest.mark.usefixtures("float64", "fresh"),
    # Dynamo asks the activation between two frames for its gradient.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


class Broken(nn.Module):
    """Two frames with a graph break between them; both use the middle layer."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Classify `[N, 5]`."""
        x = torch.tanh(self.middle(torch.tanh(self.first(x))))
        torch._dynamo.graph_break()
        return self.last(torch.tanh(self.middle(x)))


class TiedAcrossFrames(nn.Module):
    """The table is looked up in the first frame, and is the head in the second."""

    def __init__(self, head_first: bool = False):
        super().__init__()
        self.table, self.body, self.head_first = nn.Embedding(3, 6), nn.Linear(6, 6), head_first
        self.head = nn.Linear(6, 3, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        """Classify `[N, 5]`."""
        if self.head_first:
            scores = self.head(x[:, :1] + torch.arange(6))
            torch._dynamo.graph_break()
        hidden = torch.tanh(self.body(self.table((x[:, 0] > 0).long())))
        if self.head_first:
            return hidden[:, :3] + scores
        torch._dynamo.graph_break()
        return self.head(hidden)


class Equal(nn.Module):
    """A block of which a model has several; compiled in place, it must be of a class of its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Compute `[N, 5]` from `[N, 5]`."""
        return torch.tanh(self.layer(x))


@pytest.mark.parametrize("inner", AT_NIGHT)
@pytest.mark.parametrize("network", [Broken, lambda: TiedAcrossFrames(True)])
def test_frames_on_both_sides_of_a_graph_break_share_states(network, inner):
    assert_states_are_shared(network(), inner)


@pytest.mark.parametrize("inner", INNER)
def test_a_weight_tied_across_frames_has_one_state(inner):
    assert_states_are_shared(TiedAcrossFrames(), inner)


def assert_states_are_shared(model: nn.Module, inner: str) -> None:
    """Compare with the reconstructed network."""
    model, net = pair(model)
    net_of_frames = compiled(model, inner)
    train(net_of_frames, lambda step: [sample((5,), step)])
    train(net, lambda step: [sample((5,), step)])
    assert apart(model, net) < 1e-10
    assert len(sngd.fisher_layers(model)) == len(sngd.fisher_layers(net))


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_one_graph_serves_equal_blocks(inner):
    counter = CompileCounterWithBackend(inner)
    blocks = nn.Sequential(*[Equal() for _ in range(4)])
    net = sngd.reconstruct(copy.deepcopy(blocks), SETTING)
    for block in blocks:
        block.compile(backend="sngd", options=options(counter))
    train(blocks, lambda step: [sample((5,), step)])
    train(net, lambda step: [sample((5,), step)])
    assert apart(blocks, net) < 1e-10
    assert counter.frame_count == 2  # the input of the first block needs no gradient
    assert len({id(layer) for layer in sngd.fisher_layers(blocks).values()}) == 4


def options(inner, **others):
    """Return the options of a compilation."""
    return {"refresh_every": 4, "early_refreshes": (1, 3), "observe_every": 1} | {
        "early_observations": (),
        "ema_decay": 0.8,
        "damping_rel_trace": 1e-2,
        "max_rows": None,
        "inner_backend": inner,
        **AS_IN_THE_PAPER,
        **others,
    }


@pytest.mark.parametrize("inner", INNER)
def test_steps_refreshes_and_modes_compile_nothing_new(inner):
    counter = CompileCounterWithBackend(inner)
    model = mlp()
    net = compiled(model, counter)
    train(net, lambda step: [sample((5,), step), sample((5,), step + 50)], steps=9)
    assert counter.frame_count == 1
    rows = [layer.rows_seen for layer in sngd.fisher_layers(net).values()]
    net.eval()
    net(sample((5,), 0)[0]).sum().backward()
    assert counter.frame_count == 1
    with torch.no_grad():
        net(sample((5,), 0)[0])
    assert counter.frame_count == 2
    assert [layer.rows_seen for layer in sngd.fisher_layers(net).values()] == rows


def test_models_that_share_a_layer_share_its_state():
    shared = nn.Linear(5, 5)
    one, other = nn.Sequential(shared, nn.Tanh()), nn.Sequential(nn.Tanh(), shared)
    nets = [compiled(model, "aot_eager") for model in (one, other)]
    for net in nets:
        net(sample((5,), 0)[0]).sum().backward()
    layers = [next(iter(sngd.fisher_layers(net).values())) for net in nets]
    assert layers[0] is layers[1]
    assert layers[0].rows_seen == 2 * 13


def test_a_second_compilation_goes_on_with_the_state():
    model, net = pair(mlp())
    train(compiled(model), lambda step: [sample((5,), step)], steps=5)
    train(compiled(model, "aot_eager"), lambda step: [sample((5,), step)], steps=5, first=5)
    train(net, lambda step: [sample((5,), step)], steps=10)
    assert apart(model, net) < 1e-10


def test_a_deep_copy_begins_anew():
    model = mlp()
    train(compiled(model), lambda step: [sample((5,), step)], steps=3)
    twin, net = pair(copy.deepcopy(model))
    train(compiled(twin), lambda step: [sample((5,), step)])
    train(net, lambda step: [sample((5,), step)])
    assert apart(twin, net) < 1e-10


def test_a_checkpoint_around_the_compiled_model_counts_once():
    model, net = pair(mlp())
    inner = compiled(model, "aot_eager")

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    train(Outer(), lambda step: [sample((5,), step)])
    train(net, lambda step: [sample((5,), step)])
    assert apart(model, net) < 1e-10
    assert {layer.rows_seen for layer in sngd.fisher_layers(inner).values()} == {130}


@pytest.mark.parametrize("inner", AT_NIGHT)
def test_autocast_leaves_statistics_and_roots_in_float32(inner):
    torch.set_default_dtype(torch.float32)
    model = mlp()
    net = compiled(model, inner)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for step in range(5):
        inputs, labels = sample((5,), step)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(net(inputs.float()), labels)
        loss.backward()
        optimizer.step()
    for layer in sngd.fisher_layers(net).values():
        assert layer.rows_seen == 5 * 13
        assert layer.factor.dtype == layer.root.dtype == torch.float32
        assert layer.root.isfinite().all()


@pytest.mark.parametrize("bad", [{"refresh": 3}, {"refresh_every": 0}, {"inner_backend": "no"}])
def test_options_that_are_none_are_refused(bad):
    net = torch.compile(mlp(), backend="sngd", options=bad)
    with pytest.raises(ConfigError):
        net(sample((5,), 0)[0])
