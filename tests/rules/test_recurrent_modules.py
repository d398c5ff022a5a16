"""Recurrent layers draw, save, copy, move and fold as the plain ones do."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import sngd_compile as sngd
from laws.suite import close

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("packed", [False, True])
def test_dropout_draws_the_same_numbers(kind, dtype, packed):
    model = kind(2, 3, 3, dropout=0.5, bidirectional=True, batch_first=True).to(dtype)
    net = sngd.reconstruct(model)
    x = torch.randn(4, 5, 2, dtype=dtype)
    given = pack_padded_sequence(x, torch.tensor([5, 4, 2, 2]), batch_first=True) if packed else x
    seen = []
    for layer in (net, model):
        torch.manual_seed(3)
        output, state = layer(given)
        output = output.data if isinstance(output, PackedSequence) else output
        output.square().sum().backward()
        seen.append([output, *(state if isinstance(state, tuple) else (state,))])
        seen[-1] += [p.grad for p in layer.parameters()]
    for found, expected in zip(*seen, strict=True):
        torch.testing.assert_close(found, expected)
    assert sngd.fisher_layers(net)["weight_hh_l2_reverse"].rows_seen


def test_steps_that_are_not_observed_call_the_fused_function_once(monkeypatch):
    net = sngd.reconstruct(nn.LSTM(2, 3, 2), sngd.Config(observe_every=5, early_observations=()))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    calls = []
    fused = torch._VF.lstm
    monkeypatch.setattr(torch._VF, "lstm", lambda *args: calls.append(args) or fused(*args))
    for _ in range(3):
        net(torch.randn(4, 3, 2))[0].sum().backward()
        optimizer.step()
    assert all(type(weight) is Tensor for weight in calls[-1][2])
    assert len(calls) == 3
    assert sngd.fisher_layers(net)["weight_hh_l0"].rows_seen == 12


def test_copies_files_moves_and_folds():
    x = torch.randn(4, 3, 2)
    model = nn.LSTM(2, 3, 2)
    net = sngd.reconstruct(model)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(4):
        net(x)[0].square().mean().backward()
        optimizer.step()
    expected = net(x)[0]
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    fresh = sngd.reconstruct(nn.LSTM(2, 3, 2))
    fresh.load_state_dict(net.state_dict())
    copies = [copy.deepcopy(copy.deepcopy(net)), torch.load(file, weights_only=False), fresh]
    for made in (*copies, copy.deepcopy(net).float().double()):
        torch.testing.assert_close(made(x)[0], expected, rtol=1e-6, atol=1e-6)
    plain = sngd.fold(net)
    assert type(plain) is nn.LSTM
    assert all(w is p for w, p in zip(plain._flat_weights, plain.parameters(), strict=True))
    assert list(plain.state_dict()) == list(model.state_dict())
    close(plain(x)[0], expected)
    close(copy.deepcopy(plain).eval()(x)[0], expected)
    model.load_state_dict(plain.state_dict())
    close(model(x)[0], expected)


def test_a_plain_checkpoint_and_new_weights():
    x = torch.randn(4, 3, 2)
    other, net = nn.GRU(2, 3), sngd.reconstruct(nn.GRU(2, 3))
    net(x)
    sngd.refresh_(net).load_state_dict(other.state_dict(), strict=False)
    close(net(x)[0], other(x)[0])
    net.weight_hh_l0 = nn.Parameter(torch.zeros(9, 3))
    other.weight_hh_l0 = nn.Parameter(torch.zeros(9, 3))
    close(net(x)[0], other(x)[0])
    net.reset_parameters()
    close(net(x)[0], sngd.fold(net)(x)[0])


def test_a_part_of_the_weights_may_stay():
    model = nn.LSTM(2, 3)
    model.weight_ih_l0.requires_grad_(False)
    net = sngd.reconstruct(model, overrides={"weight_hh_l0": None})
    assert list(sngd.fisher_layers(net)) == []
    net = sngd.reconstruct(model)
    assert list(sngd.fisher_layers(net)) == ["weight_hh_l0"]
    x = torch.randn(4, 3, 2)
    close(net(x)[0], model(x)[0])
