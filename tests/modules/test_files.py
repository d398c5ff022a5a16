"""Networks in files: pickle, `torch.save` of the whole, loaded where nothing is known of them."""

import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sngd_compile as sngd
from api import EVERY_STEP, apart, batch, mlp, sgd, train, trained

pytestmark = pytest.mark.usefixtures("float64")

LOAD = """
import sys, torch
torch.set_default_dtype(torch.float64)
net, inputs, outputs = torch.load(sys.argv[1], weights_only=False)
import sngd_compile as sngd
assert torch.equal(net(inputs), outputs)
optimizer = torch.optim.SGD(net.parameters(), lr=0.03)
for _ in range(2):
    net(inputs).square().mean().backward()
    optimizer.step()
assert [layer.schedule.steps for layer in sngd.fisher_layers(net).values()] == [7, 7, 7]
plain = sngd.fold(net)
assert type(plain[1]) is torch.nn.Linear, type(plain[1])
assert (plain(inputs) - net(inputs)).abs().max() < 1e-12
torch.save((net, inputs, net(inputs)), sys.argv[1])
"""


def model():
    return nn.Sequential(
        nn.Unflatten(1, (1, 5)),
        nn.Linear(5, 4),
        nn.Conv1d(1, 2, 3, padding=1, bias=False),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def test_a_saved_network_loads_in_a_fresh_process(tmp_path):
    net, path = trained(model()), tmp_path / "net.pt"
    torch.save((net, batch(9), net(batch(9))), path)
    command = [sys.executable, "-W", "error", "-c", LOAD, str(path)]
    subprocess.run(command, check=True, timeout=120)
    again, inputs, outputs = torch.load(path, weights_only=False)
    assert torch.equal(again(inputs), outputs)


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_pickled_networks_go_on(protocol):
    net = trained(model())
    other = pickle.loads(pickle.dumps(net, protocol))
    assert [type(child) for child in other] == [type(child) for child in net]
    assert str(sngd.graph(other)) == str(sngd.graph(net))
    train(net, sgd(net))
    train(other, sgd(other))
    assert all(map(torch.equal, other.state_dict().values(), net.state_dict().values()))


def test_a_file_names_the_original_class_and_no_program():
    data = pickle.dumps(trained())
    assert b"Linear" in data
    assert b"Reconstructed" not in data
    assert b"def forward" not in data


def test_hooks_and_attributes_survive():
    net = trained()
    net[0].tag = {"seen": 3}
    net[0].register_forward_hook(scaled)
    other = pickle.loads(pickle.dumps(net))
    assert other[0].tag == {"seen": 3}
    assert apart(net, other) == 0.0
    assert apart(other, sngd.fold(other)) < 1e-12


def scaled(module, args, output):
    return 3 * output


def test_state_dicts_load_with_weights_only():
    net, buffer = trained(), io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    other = sngd.reconstruct(mlp(), EVERY_STEP)
    other.load_state_dict(state)
    assert apart(net, other) == 0.0


class Changing(nn.Linear):
    """Its forward is edited between saving and loading."""

    def forward(self, x):
        return super().forward(x)


def test_a_class_that_changed_computes_what_it_now_says(monkeypatch):
    net = trained(Changing(5, 3))
    data, weight = pickle.dumps(net), net.weight.detach()
    monkeypatch.setattr(Changing, "forward", lambda self, x: 2 * F.linear(x, self.weight))
    torch.testing.assert_close(pickle.loads(data)(batch()), 2 * batch() @ weight.mT)
    monkeypatch.setattr(Changing, "forward", lambda self, x: x if x.sum() > 1e9 else -x)
    torch.testing.assert_close(pickle.loads(data)(batch()), -batch())
