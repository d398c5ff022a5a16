"""Training on a GPU walks the path that it walks on a CPU."""

import copy

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from device import DEVICE, SETTING, assert_same_state, batch, on_both, train
from sngd_compile import SngdWarning
from sngd_compile.registry import ROOTS
from theorem.networks import MLP, ConvNet, Residual
from zoo import ZOO, ZooCase

NETWORKS = [MLP, ConvNet, Residual]
KINDS = ["shared", "sketch", "diagonal", "block", "kronecker", "unit"]
wide = pytest.mark.usefixtures("float64")


class Reader(nn.Module):
    """Classify sequences `[N, T, 6]` by the last output of a recurrent layer."""

    input_shape = (4, 6)

    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.layer, self.head = kind(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        """Run the layer."""
        return self.head(self.layer(x)[0][:, -1])


@wide
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", NETWORKS)
def test_it_follows_the_cpu(network, kind):
    options = {"block_size": 3} if kind == "block" else {}
    options |= {"activation": "tanh"} if kind == "unit" else {}
    options |= {"damping_abs": 1.0} if kind == "kronecker" else {}
    host, net = on_both(network(), SETTING.replace(fisher=kind, **options))
    expected = train(host, network.input_shape)
    assert train(net, network.input_shape) == pytest.approx(expected, rel=1e-8)
    assert_same_state(net, host)


@wide
@pytest.mark.parametrize("root", ROOTS)
def test_every_root(root):
    host, net = on_both(MLP(), SETTING.replace(root=root))
    expected = train(host, MLP.input_shape)
    assert train(net, MLP.input_shape) == pytest.approx(expected, rel=1e-7)


@wide
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind):
    host, net = on_both(Reader(kind))
    expected = train(host, Reader.input_shape)
    assert train(net, Reader.input_shape) == pytest.approx(expected, rel=1e-8)
    assert_same_state(net, host)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kernels", ["", "reference"])
def test_float32_by_kernels_and_by_pytorch(network, kernels, monkeypatch):
    monkeypatch.setenv("SNGD_KERNELS", kernels)
    host, net = on_both(network())
    expected = train(host.double(), network.input_shape)
    assert train(net, network.input_shape) == pytest.approx(expected, rel=1e-4)
    assert_same_state(net.double(), host, rtol=2e-3)


def test_wide_layers_in_float32():
    model = nn.Sequential(nn.Linear(700, 300), nn.ReLU(), nn.Linear(300, 3))
    host, net = on_both(model)
    expected = train(host.double(), (700,))
    assert train(net, (700,)) == pytest.approx(expected, rel=1e-3)


@wide
@pytest.mark.parametrize("network", NETWORKS)
def test_moving_a_network_is_reconstructing_a_moved_one(network):
    model = network()
    moved = sngd.reconstruct(copy.deepcopy(model), SETTING).to(DEVICE)
    train(moved, network.input_shape)
    made = sngd.reconstruct(model.to(DEVICE), SETTING)
    train(made, network.input_shape)
    assert_same_state(moved, made, rtol=1e-12)


@wide
def test_a_state_goes_to_a_cpu_and_back(tmp_path):
    host, net = on_both(MLP())
    train(net, MLP.input_shape)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    host.load_state_dict(torch.load(tmp_path / "state.pt", map_location="cpu"))
    assert_same_state(net, host, rtol=1e-12)
    again = on_both(MLP())[1]
    again.load_state_dict(host.state_dict())
    twin = copy.deepcopy(again)
    assert train(again, MLP.input_shape) == train(twin, MLP.input_shape)
    assert_same_state(again, twin, rtol=1e-12)


@wide
def test_what_is_not_finite_is_neither_learned_nor_observed():
    net = on_both(ConvNet())[1]
    train(net, ConvNet.input_shape)
    before = copy.deepcopy(net)
    inputs, _ = batch(ConvNet.input_shape, 0, torch.float64)
    inputs[3] = torch.nan
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(inputs.to(DEVICE)).sum().backward()
    with pytest.warns(SngdWarning, match="not finite"):
        optimizer.step()
    assert_same_state(net, before, rtol=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning:transformers")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_the_zoo(case):
    here = OnDevice(**vars(case))
    model = here.build()
    net = sngd.reconstruct(model, SETTING)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = here.loss_of(net)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    plain = sngd.fold(net)
    values = [float(here.loss_of(one.eval()).detach()) for one in (net, plain)]
    assert values[0] == pytest.approx(values[1], rel=1e4 * torch.finfo(case.dtype).eps)


class OnDevice(ZooCase):
    """A model of the zoo and its batch on the GPU."""

    def build(self):
        """Make the model."""
        return super().build().to(DEVICE)

    def loss_of(self, model):
        """Run the model; what the loss draws is drawn there too."""
        torch.manual_seed(2)
        output = model(**self.inputs())
        with DEVICE:
            return self.loss(output)

    def _cast(self, value):
        if isinstance(value, list):
            return [self._cast(one) for one in value]
        if isinstance(value, dict):
            return {name: self._cast(one) for name, one in value.items()}
        value = super()._cast(value)
        return value.to(DEVICE) if isinstance(value, torch.Tensor) else value
