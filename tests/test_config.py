"""A configuration holds only values in range, and says which value is not."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

import sngd_compile as sngd
from sngd_compile import Config, ConfigError

NAN, INFINITY = float("nan"), float("inf")
WRONG = [
    *[("refresh_every", value) for value in (0, -1, 1.5, "10", None, True, 2**64)],
    *[("observe_every", value) for value in (0, -3, 2.0, None, False)],
    *[("block_size", value) for value in (0, -1, 1.5, None, True, 2**63)],
    *[("seed", value) for value in (-1, 0.5, None, True, 2**63)],
    *[("early_refreshes", value) for value in (3, [1, 2], (0,), (3, 1), (1, 1), (1.0,), None)],
    *[("early_observations", value) for value in (-1, {1}, (-1,), (2, 2), ("1",))],
    *[("ema_decay", value) for value in (1.0, -0.1, NAN, INFINITY, "0.9", None, True)],
    *[("damping_rel_trace", value) for value in (-1e-9, 1.1, NAN, INFINITY, None)],
    *[("damping_abs", value) for value in (-1e-9, NAN, INFINITY, None)],
    *[("max_rows", value) for value in (0, -1, 1.5, "all", True)],
    *[("fisher", value) for value in ("units", None, 1)],
    *[("over_outputs", value) for value in ("max", None, 1)],
    *[("activation", value) for value in ("ReLU", "", None, 1, torch.relu)],
    *[("root", value) for value in ("eigh", None, "Cholesky", "Auto")],
]
EDGES = [
    {"refresh_every": 1, "observe_every": 1, "early_refreshes": (), "early_observations": (0,)},
    {"ema_decay": 0, "damping_rel_trace": 0, "damping_abs": 0},
    {"damping_rel_trace": 1, "damping_abs": 1e300, "max_rows": 1},
    {"max_rows": None},
    {"block_size": 1, "fisher": "block"},
    {"activation": "gelu", "fisher": "unit"},
    {"seed": 2**62, "refresh_every": 2**62, "max_rows": 2**62},
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_named_with_its_range(name, value):
    with pytest.raises(ConfigError) as raised:
        Config(**{name: value})
    text = str(raised.value)
    assert text.startswith(f"Config.{name} = {value!r}: expected ")
    with pytest.raises(ConfigError, match=f"Config.{name} = "):
        Config().replace(**{name: value})
    with pytest.raises(ConfigError):
        replace(Config(), **{name: value})


@pytest.mark.parametrize("edges", EDGES)
def test_the_edges_of_the_ranges_are_allowed(edges):
    config = Config(**edges)
    assert {name: getattr(config, name) for name in edges} == edges


def test_the_largest_values_work():
    config = Config(seed=2**62, max_rows=2**62, refresh_every=2**62)
    net = sngd.reconstruct(torch.nn.Linear(3, 2), config)
    net(torch.ones(4, 3)).sum().backward()
    assert sngd.fisher_layers(net)["weight"].rows_seen == 4


def test_it_is_frozen_hashable_and_takes_keywords_only():
    config = Config(seed=3)
    with pytest.raises(FrozenInstanceError):
        config.seed = 4
    with pytest.raises(TypeError):
        Config(100)
    assert {config: "found"}[Config(seed=3)] == "found"
    assert config != Config()


def test_replace_makes_a_checked_copy():
    config = Config()
    changed = config.replace(refresh_every=7, root="symmetric")
    assert (changed.refresh_every, changed.root, config.root) == (7, "symmetric", "cholesky")
    with pytest.raises(ConfigError, match="no field 'refresh'") as raised:
        config.replace(refresh=7)
    assert "refresh_every" in str(raised.value)


def test_the_robust_preset():
    robust = Config.robust()
    assert (robust.over_outputs, robust.damping_rel_trace) == ("mean", 3e-2)
    assert [step for step in range(12, 61) if robust.is_refreshed(step)] == [20, 31, 40, 60]
    assert [step for step in range(6, 21) if robust.is_observed(step)] == [10, 15, 20]


def test_the_paper_preset():
    paper = Config.paper()
    assert (paper.ema_decay, paper.damping_rel_trace, paper.damping_abs) == (0.995, 1e-4, 0.0)
    assert (paper.refresh_every, paper.observe_every, paper.max_rows) == (100, 1, None)
    assert [step for step in range(1, 301) if paper.is_refreshed(step)] == [100, 200, 300]
    assert all(paper.is_observed(step) for step in range(30))


def test_the_schedule():
    config = Config(
        refresh_every=10, early_refreshes=(1, 3), observe_every=4, early_observations=(2, 5)
    )
    assert [step for step in range(25) if config.is_observed(step)] == [
        0,
        2,
        4,
        5,
        8,
        12,
        16,
        20,
        24,
    ]
    assert [step for step in range(1, 25) if config.is_refreshed(step)] == [1, 3, 10, 20]


def test_every_field_is_documented():
    text = Config.__doc__ or ""
    assert [field.name for field in fields(Config) if f"\n        {field.name}: " not in text] == []
