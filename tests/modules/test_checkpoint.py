"""State dicts of plain models and of networks, each loaded into the other."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from api import EVERY_STEP, apart, batch, mlp, sgd, steps_of, train, trained

pytestmark = pytest.mark.usefixtures("float64")


def is_fresh(layer):
    return (
        torch.equal(layer.root, torch.eye(layer.size))
        and layer.rows_seen == layer.schedule.steps == 0
        and layer.damping == 1.0
        and not layer.factor.any()
    )


def test_folding_gives_exactly_the_original_keys():
    model = nn.Sequential(mlp(), nn.BatchNorm1d(3), nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2))
    plain = sngd.fold(trained(model))
    expected = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in plain.state_dict().items()} == expected
    assert list(plain.state_dict()) == list(model.state_dict())
    model.load_state_dict(plain.state_dict())
    assert apart(model.eval(), plain.eval()) == 0.0


@pytest.mark.parametrize("assign", [False, True])
def test_a_plain_checkpoint_takes_the_roots_back(assign):
    net, model = trained(), mlp()
    state = model.state_dict()
    keys = list(state)
    assert net.load_state_dict(state, assign=assign) == nn.Linear(1, 1).load_state_dict(
        nn.Linear(1, 1).state_dict()
    )
    assert list(state) == keys
    assert apart(net, model) == 0.0
    assert all(is_fresh(layer) for layer in sngd.fisher_layers(net).values())
    train(net, sgd(net))
    assert steps_of(net) == [5, 5]
    assert apart(net, sngd.fold(net)) < 1e-12


def test_training_after_a_plain_checkpoint_is_training_from_it():
    model = mlp()
    used, fresh = trained(), sngd.reconstruct(model, EVERY_STEP)
    used.load_state_dict(model.state_dict())
    train(used)
    train(fresh)
    assert apart(used, fresh) == 0.0


def test_strict_loading_names_missing_and_unexpected_keys():
    net, state = trained(), mlp().state_dict()
    del state["0.bias"]
    state["3.weight"] = torch.zeros(2)
    with pytest.raises(RuntimeError, match=r"Missing key.*\"0.bias\"") as raised:
        copy.deepcopy(net).load_state_dict(state)
    assert 'Unexpected key(s) in state_dict: "3.weight"' in str(raised.value)
    assert "fisher" not in str(raised.value)
    found = net.load_state_dict(state, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["0.bias"], ["3.weight"])


@pytest.mark.parametrize("names", [["0.weight", "0.bias"], ["0.weight"], ["2.bias"], []])
def test_a_partial_checkpoint_changes_what_it_names(names):
    net, model = trained(), mlp()
    before = sngd.fold(net).state_dict()
    state = OrderedDict((name, model.state_dict()[name]) for name in names)
    net.load_state_dict(state, strict=False)
    for name, value in sngd.fold(net).state_dict().items():
        expected = state.get(name, before[name])
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-13)
    touched = {name.partition(".")[0] for name in names}
    for name, layer in sngd.fisher_layers(net).items():
        assert is_fresh(layer) == (name.partition(".")[0] in touched)


def test_a_network_loads_into_a_network():
    net, other = trained(), sngd.reconstruct(mlp(), EVERY_STEP)
    other.load_state_dict(net.state_dict())
    assert apart(net, other) == 0.0
    assert all(map(torch.equal, other.state_dict().values(), net.state_dict().values()))


def test_a_network_does_not_load_into_a_plain_model():
    net, model = trained(), mlp()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*weight_fisher"):
        model.load_state_dict(net.state_dict())


def test_a_network_does_not_load_into_another_reconstruction():
    net = trained()
    symmetric = sngd.reconstruct(mlp(), EVERY_STEP.replace(root="symmetric"))
    with pytest.raises(RuntimeError, match=r"root_buffers.symmetric"):
        symmetric.load_state_dict(net.state_dict())
    partly = sngd.reconstruct(mlp(), overrides={"0.weight": None})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*0.weight_fisher"):
        partly.load_state_dict(net.state_dict())


def test_wrong_shapes_raise():
    net = trained()
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        net.load_state_dict(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).state_dict())


def test_a_plain_checkpoint_moves_the_momenta():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    optimizer = train(net)
    momenta = [
        optimizer.state[p]["momentum_buffer"] for p in (net[0].weight_prime, net[0].bias_prime)
    ]
    joined = torch.cat([momenta[0], momenta[1][:, None]], 1)
    expected = joined @ sngd.fisher_layers(net)["0.weight"].root
    net.load_state_dict(mlp().state_dict())
    torch.testing.assert_close(torch.cat([momenta[0], momenta[1][:, None]], 1), expected)


def test_a_state_dict_holds_no_views_of_folded_weights():
    net = trained()
    state = net.state_dict()
    assert state["0.weight"].data_ptr() == net[0].weight_prime.data_ptr()
    assert net(batch()).shape == (7, 3)


class OfItsOwnMaking(nn.Linear):
    """Writes its attributes into its state, and reads that into them, as classes of PyG do."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        for name in ("weight", "bias"):
            value = getattr(self, name)
            destination[prefix + name] = value if keep_vars else value.detach()

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        with torch.no_grad():
            self.weight.copy_(state_dict[prefix + "weight"])
            self.bias.copy_(state_dict[prefix + "bias"])


def made_of_attributes():
    torch.manual_seed(0)
    return nn.Sequential(OfItsOwnMaking(5, 4), nn.Tanh(), OfItsOwnMaking(4, 3))


def test_a_state_that_a_class_makes_of_its_attributes_is_that_of_the_parameters():
    net = sngd.reconstruct(made_of_attributes(), EVERY_STEP)
    optimizer = train(net)
    state = copy.deepcopy(net.state_dict())
    assert torch.equal(state["0.weight"], net[0].weight_prime)
    assert net.state_dict(keep_vars=True)["0.bias"] is net[0].bias_prime
    other = sngd.reconstruct(made_of_attributes(), EVERY_STEP)
    again = sgd(other)
    train(other, again, steps=2)
    other.load_state_dict(state)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert apart(net, other) == 0
    train(net, optimizer, first=5)
    train(other, again, first=5)
    assert apart(net, other) == 0
    plain = made_of_attributes()
    plain.load_state_dict(sngd.fold(net).state_dict())
    assert apart(net, plain) < 1e-12
    other.load_state_dict(plain.state_dict())
    assert apart(net, other) < 1e-12
    assert is_fresh(sngd.fisher_layers(other)["0.weight"])
