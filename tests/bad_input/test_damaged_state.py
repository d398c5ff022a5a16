"""A state that is damaged is refused by the name of its layer, before a weight has changed."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from api import EVERY_STEP, mlp, train, trained
from sngd_compile import ModelError
from sngd_compile.fisher.spec import FORMAT_ENTRY
from sngd_compile.registry import KINDS

pytestmark = pytest.mark.usefixtures("float64")
DAMAGES: dict[str, Callable[[Tensor], object]] = {
    "another shape": lambda tensor: tensor.new_zeros(*tensor.shape, 2),
    "no tensor": lambda tensor: "evil",
    "not a number": lambda tensor: tensor * float("nan"),
}


def keys_of(state: dict[str, Tensor], layer: str) -> list[str]:
    """All of a Fisher layer that are numbers; steps and seeds are counts."""
    inside = [key for key in state if key.startswith(f"{layer}.weight_fisher.")]
    return [key for key in inside if state[key].is_floating_point()]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("fisher", sorted(KINDS))
def test_a_network_refuses_it_and_computes_what_it_did(fisher, damage):
    config = sngd.Config(fisher=fisher, observe_every=1, early_refreshes=(1, 3))
    net, other = trained(mlp(), config), trained(mlp(), config)
    train(other)
    for key in keys_of(net.state_dict(), "2"):
        state = copy.deepcopy(other.state_dict())
        state[key] = DAMAGES[damage](state[key])
        kept = copy.deepcopy(net)
        with pytest.raises(ModelError, match=r"^2\.weight: .*damaged, or of another network"):
            kept.load_state_dict(state)
        for name, value in net.state_dict().items():
            assert torch.equal(kept.state_dict()[name], value), f"{key} damaged, {name} changed"


@pytest.mark.parametrize("is_apart", [True, False])
def test_a_state_is_refused_before_any_module_has_taken_a_part(is_apart):
    net, other = (nn.Sequential(trained(), nn.Linear(3, 3)) for _ in range(2))
    groups = [{"params": [p for p in other.parameters() if p.dim() == n]} for n in (2, 1)]
    groups[0]["weight_decay"] = 0.1 * is_apart
    train(other, torch.optim.SGD(groups, 0.03))
    assert other[0][0].weight_fisher.spec.is_bias_apart is is_apart

    def without_fisher(state):
        for key in [key for key in state if key.startswith("0.2.weight_fisher")]:
            del state[key]

    def newer(state):
        state["0.2.weight_fisher._extra_state"][FORMAT_ENTRY] += 1

    before = copy.deepcopy(net.state_dict())
    for change, said in ((without_fisher, "no Fisher layer"), (newer, "newer sngd_compile")):
        state = copy.deepcopy(other.state_dict())
        change(state)
        with pytest.raises(ModelError, match=rf"2\.weight: .*{said}"):
            net.load_state_dict(state)
        torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_the_state_beside_a_compiled_model_is_taken_whole_or_not_at_all():
    model = mlp()
    train(torch.compile(model, backend="sngd", options={"inner_backend": "eager"}))
    good = sngd.state_dict(model)
    (key,) = [key for key in good["2.weight"]["fisher"] if key.endswith("factor")]
    for damage in DAMAGES.values():
        state = copy.deepcopy(good)
        for value in state["0.weight"]["fisher"].values():
            value.mul_(2 if value.is_floating_point() else 1)
        state["2.weight"]["fisher"][key] = damage(good["2.weight"]["fisher"][key])
        with pytest.raises(ModelError, match=r"2\.weight"):
            sngd.load_state_dict(model, state)
        for name, entry in sngd.state_dict(model).items():
            for part, value in entry["fisher"].items():
                assert torch.equal(value, good[name]["fisher"][part])


def _missing(key: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.pop(key)


def _misfitting(key: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.update({key: torch.ones(2, 2)})


PARTS = {
    "no weight": _missing("2.weight"),
    "no bias": _missing("2.bias"),
    "no root": _missing("2.weight_fisher.root_buffers.inverse"),
    "no schedule": _missing("2.weight_fisher._extra_state"),
    "another weight": _misfitting("2.weight"),
    "another bias": _misfitting("2.bias"),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("strict", [True, False])
def test_a_weight_its_bias_and_their_root_are_loaded_together_or_not_at_all(part, strict):
    net, other = trained(mlp(), EVERY_STEP), trained(mlp(), EVERY_STEP)
    train(other)
    before, state = copy.deepcopy(net), copy.deepcopy(other.state_dict())
    PARTS[part](state)
    given = dict(state)
    if strict or "another" in part:
        with pytest.raises(RuntimeError, match=r"2\."):
            net.load_state_dict(state, strict=strict)
    else:
        assert [key[:2] for key in net.load_state_dict(state, strict=False).missing_keys] == ["2."]
    for name, value in before[2].state_dict().items():
        assert torch.equal(net[2].state_dict()[name], value), name
    # What is whole is loaded, as it is into a plain network; and the caller's state is his.
    for name, value in other[0].state_dict().items():
        assert torch.equal(net[0].state_dict()[name], value), name
    assert state.keys() == given.keys()
    assert all(state[name] is given[name] for name in given)
