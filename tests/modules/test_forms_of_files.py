"""Files in which biases are apart from their weights, or joined, where the network is otherwise."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

import sngd_compile as sngd
from api import EVERY_STEP, FISHERS, apart, batch, mlp, train, trained

pytestmark = pytest.mark.usefixtures("float64")
every_fisher = pytest.mark.parametrize("config", FISHERS.values(), ids=FISHERS)
both_forms = pytest.mark.parametrize("is_apart", [True, False], ids=["apart", "joined"])


def descent(net: nn.Module, is_apart: bool) -> Optimizer:
    """Return an optimizer that parts biases from their weights, or leaves them together."""
    found = dict(net.named_parameters())
    biases = [p for name, p in found.items() if name.endswith("bias")]
    weights = [p for name, p in found.items() if not name.endswith("bias")]
    decay = 0.1 if is_apart else 0.0
    return SGD([{"params": weights, "weight_decay": decay}, {"params": biases}], 0.03, 0.9)


def states(net: nn.Module, optimizer: Optimizer) -> list[dict]:
    """Return what a file holds of both."""
    return copy.deepcopy([net.state_dict(), optimizer.state_dict()])


def velocity(net: nn.Module, optimizer: Optimizer) -> nn.Module:
    """Return a network whose ordinary weights are the momenta."""
    copied = copy.deepcopy(net)
    with torch.no_grad():
        for own, parameter in zip(copied.parameters(), net.parameters(), strict=True):
            own.copy_(optimizer.state[parameter]["momentum_buffer"])
    return sngd.fold(copied)


@both_forms
@every_fisher
def test_network_and_optimizer_are_loaded_in_any_order(config, is_apart):
    net = sngd.reconstruct(mlp(), config)
    optimizer = train(net, descent(net, is_apart))
    saved = states(net, optimizer)
    train(net, optimizer, first=5)
    for order in ((0, 1), (1, 0)):
        again = sngd.reconstruct(mlp(), config)
        # It has stepped, so its momenta move with a root; its settings are in its state.
        other = train(again, descent(again, not is_apart), first=20)
        loaded = copy.deepcopy(saved)
        for part in order:
            (again, other)[part].load_state_dict(loaded[part])
        train(again, other, first=5)
        assert apart(net, again) < 1e-11


@both_forms
def test_where_a_part_is_missing_all_stays(is_apart):
    net = trained()
    file = states(net, train(net, descent(net, is_apart)))[0]
    del file["0.bias"]
    again = sngd.reconstruct(mlp(), EVERY_STEP)
    optimizer = train(again, descent(again, not is_apart))
    twin, before = copy.deepcopy(again), velocity(again, optimizer)
    assert again.load_state_dict(file, strict=False).missing_keys == ["0.bias"]
    assert apart(again[0], twin[0]) < 1e-12
    after = velocity(again, optimizer)
    torch.testing.assert_close(after[0].weight, before[0].weight, rtol=1e-9, atol=1e-12)


@both_forms
def test_a_damaged_layer_is_refused_before_the_form_changes(is_apart):
    net = trained()
    file = states(net, train(net, descent(net, is_apart)))[0]
    file["0.weight_fisher.factor"][0] = torch.nan
    again = sngd.reconstruct(mlp(), EVERY_STEP)
    optimizer = train(again, descent(again, not is_apart))
    before = states(again, optimizer)
    with pytest.raises(sngd.ModelError, match=r"0.weight: factor .* not finite"):
        again.load_state_dict(file)
    for kept, now in zip(before, states(again, optimizer), strict=True):
        torch.testing.assert_close(now, kept, rtol=0, atol=0)


@both_forms
def test_of_names_that_share_a_layer_a_file_may_hold_its_tensors_under_one(is_apart):
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    model[2].weight, model[2].bias = model[0].weight, model[0].bias
    net = sngd.reconstruct(model, EVERY_STEP)
    file = states(net, train(net, descent(net, is_apart)))[0]
    seen: set[int] = set()
    for name, value in [*net.state_dict().items()]:
        if value.data_ptr() in seen:  # as safetensors writes it
            del file[name]
        seen.add(value.data_ptr())
    assert "2.weight" not in file
    again = sngd.reconstruct(copy.deepcopy(model), EVERY_STEP)
    train(again, descent(again, not is_apart), first=9)
    again.load_state_dict(file, strict=False)
    assert apart(net, again, batch()) < 1e-12
    layers = sngd.fisher_layers(again).values()
    assert [layer.has_bias for layer in layers] == [not is_apart] * len(layers)
