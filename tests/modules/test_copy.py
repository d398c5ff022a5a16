"""Copies of a network train, refresh and fold by themselves."""

import copy
import io

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from api import EVERY_STEP, apart, mlp, rows_of, sgd, steps_of, train, trained

pytestmark = pytest.mark.usefixtures("float64")


def test_a_copy_is_the_same_network():
    net = trained()
    other = copy.deepcopy(net)
    assert type(other[0]) is type(net[0])
    assert list(other.state_dict()) == list(net.state_dict())
    assert all(map(torch.equal, other.state_dict().values(), net.state_dict().values()))
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in other.parameters()}
    assert apart(net, other) == 0.0


def test_a_copy_trains_and_refreshes_by_itself():
    net = trained()
    other = copy.deepcopy(net)
    weight, root = net[0].weight.clone(), sngd.fisher_layers(net)["0.weight"].root
    train(other, steps=4)
    assert (steps_of(net), steps_of(other)) == ([5, 5], [9, 9])
    assert torch.equal(net[0].weight, weight)
    assert torch.equal(sngd.fisher_layers(net)["0.weight"].root, root)
    assert not torch.equal(sngd.fisher_layers(other)["0.weight"].root, root)
    assert not torch.equal(other[0].weight, weight)


def test_a_copy_walks_where_the_original_would_have():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    other = copy.deepcopy(net)
    train(net)
    train(other)
    assert apart(net, other) == 0.0


def test_network_and_optimizer_copied_together_go_on():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    optimizer = train(net, steps=3)
    other, others = copy.deepcopy((net, optimizer))
    train(net, optimizer, first=3)
    train(other, others, first=3)
    assert all(map(torch.equal, other.state_dict().values(), net.state_dict().values()))


def test_a_shallow_copy_shares_all_and_counts_once():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    other = copy.copy(net[0])
    assert other.weight_fisher is net[0].weight_fisher
    reference = sngd.reconstruct(mlp(), EVERY_STEP)
    reference.load_state_dict(net.state_dict())
    train(net)
    train(reference)
    assert steps_of(net) == [5, 5]
    assert apart(net, reference) == 0.0


def test_a_copy_of_one_layer_is_independent():
    net = trained()
    layer = copy.deepcopy(net[0])
    before = layer.weight.clone()
    train(net)
    assert torch.equal(layer.weight, before)
    train(layer, steps=2)
    assert layer.weight_fisher.schedule.steps == 7


def test_a_copy_keeps_the_mode():
    other = copy.deepcopy(trained().eval())
    assert not any(module.training for module in other.modules())


def test_folding_a_copy_leaves_the_network():
    net = trained()
    before = copy.deepcopy(net.state_dict())
    plain = sngd.fold(net)
    assert all(map(torch.equal, net.state_dict().values(), before.values()))
    assert type(plain[0]) is nn.Linear
    assert not list(plain.buffers())
    assert apart(plain, net) < 1e-13
    train(plain)
    assert all(map(torch.equal, net.state_dict().values(), before.values()))


def test_networks_copied_mid_way_see_their_own_rows():
    net = sngd.reconstruct(mlp(), EVERY_STEP.replace(refresh_every=100, early_refreshes=()))
    train(net, steps=2)
    other = copy.deepcopy(net)
    train(other, sgd(other), steps=1)
    assert (rows_of(net), rows_of(other)) == ([14, 14], [21, 21])


class Kept(nn.Module):
    """Keeps what its forward computed."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(3, 3), None

    def forward(self, x):
        """Multiply."""
        self.last = self.layer(x)
        return self.last


def test_a_kept_activation_is_named_where_it_stops_a_copy():
    net = sngd.reconstruct(nn.Sequential(Kept()))
    x = torch.randn(2, 3)
    out = net(x)
    with pytest.raises(sngd.ModelError, match=r"0\.last keeps a tensor.*sngd\.fold_"):
        sngd.fold(net)
    torch.testing.assert_close(sngd.fold_(net)(x), out)


class Restored(nn.Linear):
    """Sets an attribute before its dictionaries exist."""

    def __setstate__(self, state):
        """Set it, then the rest."""
        self.restored = True
        super().__setstate__(state)


def test_attributes_may_be_set_before_the_state():
    net, x = sngd.reconstruct(nn.Sequential(Restored(3, 2))), torch.randn(4, 3)
    other = copy.deepcopy(net)
    assert other[0].restored
    torch.testing.assert_close(other(x), net(x))
    torch.testing.assert_close(sngd.fold(net)(x), net(x))


class Rebuilt(nn.Linear):
    """Makes a state of its own, and a new module of it."""

    def __getstate__(self):
        return self.in_features, self.out_features, self.weight.tolist(), self.bias.tolist()

    def __setstate__(self, state):
        self.__init__(*state[:2])
        with torch.no_grad():
            self.weight.copy_(torch.tensor(state[2]))
            self.bias.copy_(torch.tensor(state[3]))


class Chosen(nn.Linear):
    """Keeps what it knows, without a word on the rest."""

    KEPT = ("in_features", "out_features", "_parameters", "_buffers", "_modules", "training")

    def __getstate__(self):
        return {name: self.__dict__[name] for name in self.KEPT}

    def __setstate__(self, state):
        nn.Module.__init__(self)
        self.__dict__.update(state)


class Paired(nn.Linear):
    """Has a state that is no dictionary."""

    def __getstate__(self):
        return super().__getstate__(), 3

    def __setstate__(self, state):
        self.norm = 0.0
        super().__setstate__(state[0])


def pickled(net):
    """Write a network and read it."""
    torch.save(net, file := io.BytesIO())
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("kind", [Rebuilt, Chosen, Paired])
def test_states_of_a_class_s_own_making_are_followed(kind, copied):
    net = sngd.reconstruct(nn.Sequential(kind(3, 4), nn.Tanh(), kind(4, 2)), EVERY_STEP)
    x = torch.linspace(-1, 1, 21).reshape(7, 3)

    def step(some):
        optimizer = sgd(some)
        for _ in range(3):
            optimizer.zero_grad()
            some(x).square().sum().backward()
            optimizer.step()

    def same(one, another):
        with torch.no_grad():
            torch.testing.assert_close(one(x), another(x))

    step(net)
    other = copied(net)
    same(other, net)
    same(sngd.fold(other), net)
    assert type(sngd.fold(net)[0]) is kind
    step(net)
    step(other)
    assert rows_of(other) == rows_of(net)
    same(other, net)
