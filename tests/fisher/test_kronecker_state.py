"""What `Config(fisher="kronecker")` keeps: in files, in copies, over skipped steps."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config
from theorem.networks import MLP, batch, loss

CONFIG = Config(fisher="kronecker", max_rows=None)
float64 = pytest.mark.usefixtures("float64")


def step(net: nn.Module, optimizer: torch.optim.SGD, number: int, scale: float = 1.0) -> None:
    """Take one step of a classifier on its own batch."""
    optimizer.zero_grad()
    inputs, labels = batch(MLP(), number)
    (scale * loss(net(inputs), labels) / len(labels)).backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    optimizer.step()


def start() -> tuple[nn.Module, torch.optim.SGD]:
    """Reconstruct a network that refreshes every other step."""
    net = sngd.reconstruct(MLP(), CONFIG.replace(refresh_every=2))
    return net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    """Compare parameters exactly."""
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@float64
@pytest.mark.parametrize("way", ["state dict", "pickle", "copy"])
def test_a_resumed_run_goes_on_as_the_first_would_have(way):
    net, optimizer = start()
    for number in range(5):
        step(net, optimizer, number)
    if way == "state dict":
        file = io.BytesIO()
        torch.save((net.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        resumed, other = start()
        saved = torch.load(file, weights_only=True)
        resumed.load_state_dict(saved[0])
    else:
        resumed = copy.deepcopy(net) if way == "copy" else pickle.loads(pickle.dumps(net))
        other = torch.optim.SGD(resumed.parameters(), lr=0.05, momentum=0.9)
        saved = (None, optimizer.state_dict())
    other.load_state_dict(copy.deepcopy(saved[1]))
    for number in range(5, 9):
        step(net, optimizer, number)
        step(resumed, other, number)
    assert_same_weights(net, resumed)
    x, _ = batch(MLP(), 30)
    torch.testing.assert_close(sngd.fold(resumed)(x), net(x), rtol=1e-9, atol=1e-11)


@float64
def test_loading_a_plain_checkpoint_returns_both_roots_to_the_identity():
    net, optimizer = start()
    for number in range(3):
        step(net, optimizer, number)
    plain = MLP()
    net.load_state_dict(plain.state_dict())
    fisher = sngd.fisher_layers(net)["first.weight"]
    assert not fisher.output_side.factor.any()
    torch.testing.assert_close(fisher.output_root, torch.eye(7))
    x, _ = batch(plain, 9)
    torch.testing.assert_close(net(x), plain(x))


@float64
def test_a_step_that_is_skipped_leaves_nothing_behind():
    net, optimizer = start()
    step(net, optimizer, 0)
    with pytest.warns(sngd.SngdWarning, match="not finite"):
        step(net, optimizer, 1, scale=float("inf"))
    fisher = sngd.fisher_layers(net)["last.weight"]
    assert not fisher.output_side.sum.any()
    assert not fisher.output_side.tally.any()


class Switch(nn.Module):
    """A linear layer whose forward can be captured while `fast`."""

    def __init__(self):
        super().__init__()
        self.weight, self.fast = nn.Parameter(torch.randn(3, 5)), True

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        if not self.fast and float(x.sum()) > 1e9:
            x = x / 2
        return F.linear(x, self.weight)


def test_a_layer_whose_outputs_are_no_longer_seen_says_so():
    net = sngd.reconstruct(Switch(), CONFIG)
    net.fast = False
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    net(torch.randn(6, 5)).sum().backward()
    with pytest.warns(sngd.SngdWarning, match="weight: no output gradient has been observed"):
        optimizer.step()
    assert sngd.fisher_layers(net)["weight"].rows_seen == 6
