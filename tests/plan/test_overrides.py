"""Patterns choose a configuration, or none, for single weights."""

import pytest
from torch import nn

import sngd_compile as sngd
from api import apart, mlp, train
from sngd_compile import Config, ConfigError


def configs(model, config=None, **overrides):
    plan = sngd.explain(model, config, overrides=overrides["overrides"])
    return {site.name: site.config.refresh_every for site in plan.sites}


def deep():
    return nn.ModuleDict(
        {"stem": nn.Conv2d(1, 2, 3), "blocks": nn.ModuleList([nn.Linear(4, 4) for _ in range(12)])}
    )


FIRST, SECOND = Config(refresh_every=11), Config(refresh_every=22)


def test_the_last_match_counts():
    found = configs(
        deep(), FIRST, overrides={"blocks.*": None, "blocks.1*": SECOND, "*.11.*": None}
    )
    assert found == {"stem.weight": 11, "blocks.1.weight": 22, "blocks.10.weight": 22}


def test_the_order_is_that_of_the_dictionary():
    model = mlp()
    assert configs(model, overrides={"*": FIRST, "0.*": SECOND}) == {"0.weight": 22, "2.weight": 11}
    assert configs(model, overrides={"0.*": SECOND, "*": FIRST}) == {"0.weight": 11, "2.weight": 11}


@pytest.mark.parametrize("pattern", ["*.weight", "*", "[02].weight", "?.weight"])
def test_none_leaves_the_weights(pattern):
    plan = sngd.explain(mlp(), overrides={pattern: None})
    found = {skip.name: skip.reason for skip in plan.skips}
    assert plan.sites == []
    assert found["0.weight"] == found["2.weight"] == "left out by an override"
    assert "joins no local Fisher" in found["0.bias"]


def test_none_for_a_bias_keeps_it_out():
    model = mlp()
    plan = sngd.explain(model, overrides={"0.bias": None})
    assert [site.parameter_names for site in plan.sites] == [["0.weight"], ["2.weight", "2.bias"]]
    net = sngd.reconstruct(model, overrides={"0.bias": None})
    assert str(sngd.explain(net)) == str(plan)
    train(net)
    assert apart(net, sngd.fold(net)) < 1e-5


def test_a_network_explains_its_own_overrides():
    overrides = {"0.*": None, "2.weight": SECOND}
    net = sngd.reconstruct(mlp(), FIRST, overrides=overrides)
    assert str(sngd.explain(net)) == str(sngd.explain(mlp(), FIRST, overrides=overrides))
    (site,) = sngd.explain(net).sites
    assert site.config == sngd.fisher_layers(net)["2.weight"].config == SECOND


def test_names_with_brackets_are_no_patterns_of_their_own():
    model = nn.Module()
    model.add_module("layer[0]", nn.Linear(3, 2))
    net = sngd.reconstruct(model)
    assert str(sngd.explain(net)) == str(sngd.explain(model))
    assert len(sngd.explain(net).sites) == 1


@pytest.mark.parametrize("call", [sngd.explain, sngd.reconstruct])
def test_wrong_overrides_raise(call):
    model = mlp()
    for pattern in ("1.weight", "weight", "0", "0.Weight", ""):
        with pytest.raises(ConfigError, match="matches none of the parameters"):
            call(model, overrides={"2.weight": None, pattern: FIRST})
    for value in ("none", 1, {"refresh_every": 3}, Config):
        with pytest.raises(ConfigError, match="neither a Config nor None"):
            call(model, overrides={"0.weight": value})
