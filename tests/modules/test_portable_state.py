"""What plain models load holds w, and no state in which w' would pass for w is taken."""

import copy

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from api import FISHERS, apart, mlp, sgd, train, trained

pytestmark = pytest.mark.usefixtures("float64")

every_fisher = pytest.mark.parametrize("config", FISHERS.values(), ids=FISHERS)


def save_pretrained(net: nn.Module) -> dict[str, torch.Tensor]:
    """Ask for a state as the libraries do whose files plain models load."""
    return copy.deepcopy(net.state_dict())


@every_fisher
def test_a_plain_model_has_the_weights_and_a_network_goes_on(config):
    net = trained(config=config)
    optimizer = train(net)
    state, momenta = save_pretrained(net), copy.deepcopy(optimizer.state_dict())
    plain = mlp()
    plain.load_state_dict(state, strict=False)
    assert apart(net, plain) < 1e-10
    for resumed in (sngd.reconstruct(mlp(), config), trained(config=config)):
        resumed.load_state_dict(state)
        assert apart(net, resumed) < 1e-10
        again = sgd(resumed)
        again.load_state_dict(copy.deepcopy(momenta))
        ours = copy.deepcopy(net)
        theirs = sgd(ours)
        theirs.load_state_dict(copy.deepcopy(momenta))
        train(ours, theirs, first=10)
        train(resumed, again, first=10)
        assert apart(ours, resumed) < 1e-8


class Saving(nn.Sequential):
    """Saves as models of transformers do."""

    def save_pretrained(self, folder, is_main_process=True, state_dict=None, **options):
        """Return what would be written."""
        return self.state_dict() if state_dict is None else state_dict


@every_fisher
@pytest.mark.parametrize("by_name", [False, True])
def test_a_state_that_is_handed_over_is_folded_too(config, by_name):
    net = trained(Saving(*mlp()), config)
    train(net)
    state = net.state_dict()
    kept = copy.deepcopy(state)
    given = ((), {"state_dict": state}) if by_name else ((True, state), {})
    saved = net.save_pretrained("folder", *given[0], **given[1])
    torch.testing.assert_close(state, kept, rtol=0, atol=0)
    asked = net.save_pretrained("folder")
    torch.testing.assert_close(saved, asked, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        net.save_pretrained("folder", state_dict=asked), asked, rtol=0, atol=0
    )
    plain = mlp()
    plain.load_state_dict(saved, strict=False)
    assert apart(net, plain) < 1e-10


def test_of_a_part_of_a_state_the_layers_that_are_whole_are_folded():
    net = trained(Saving(*mlp()))
    part = {key: value for key, value in net.state_dict().items() if not key.startswith("0")}
    saved, asked = net.save_pretrained("folder", state_dict=part), net.save_pretrained("folder")
    assert saved.keys() == {key for key in asked if not key.startswith("0")}
    torch.testing.assert_close(saved["2.weight"], asked["2.weight"])
    lone = {"2.weight": net[2].weight_prime.detach()}
    assert net.save_pretrained("folder", state_dict=lone) == lone


def test_a_saver_of_a_plain_model_writes_what_it_is_handed():
    trained(Saving(*mlp()))
    plain = Saving(*mlp())
    state = plain.state_dict()
    torch.testing.assert_close(plain.save_pretrained("folder", state_dict=state), state)
    assert plain.save_pretrained("folder", state_dict=None).keys() == state.keys()


def test_other_states_are_as_before():
    net = trained()
    state = net.state_dict()
    assert torch.equal(state["0.weight"], net[0].weight_prime)
    assert not any(key.endswith("folded") for key in state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*0.weight_fisher"):
        mlp().load_state_dict(state)


def test_ties_share_memory_in_the_state():
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    net = trained(model)
    handed = trained(Saving(*model))
    state = handed.save_pretrained("folder", state_dict=handed.state_dict())
    assert state["0.weight"] is state["2.weight"]
    saved = [None, None]

    def save_pretrained():
        for index in range(2):
            saved[index] = net.state_dict()

    save_pretrained()
    assert saved[0]["0.weight"] is saved[0]["2.weight"]
    assert saved[0]["0.weight"] is not saved[1]["0.weight"]
    plain = copy.deepcopy(model)
    plain.load_state_dict(saved[0], strict=False)
    assert apart(net, plain) < 1e-10
    net.load_state_dict(saved[1])
    assert apart(net, plain) < 1e-10


@every_fisher
def test_parameters_kept_by_name_are_not_taken_for_weights(config):
    net = trained(config=config)
    kept = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    before = sngd.fold(net)
    with pytest.raises(sngd.ModelError, match=r"0.weight: .*sngd.follow"):
        net.load_state_dict(kept, strict=False)
    assert apart(net, before) < 1e-12
    train(net)


def test_plain_states_are_taken_as_before():
    net = trained()
    for model in (mlp(), sngd.fold(net)):
        net.load_state_dict(model.state_dict())
        assert apart(net, model) < 1e-12
        train(net)
