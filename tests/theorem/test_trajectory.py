"""Plain SGD on `w'` walks along the hand-written preconditioned descent on `w`."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from api import AS_IN_THE_PAPER
from sngd_compile import Config
from theorem.descent import Layer, NaturalDescent
from theorem.kfac import KroneckerLayer
from theorem.networks import MLP, ConvNet, Residual, batch, loss
from theorem.units import unit_layers

pytestmark = pytest.mark.usefixtures("float64")
STEPS = 24


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to train.

    Args:
        name: Shown by pytest.
        config: Fields of `Config` beside the common ones.
        sgd: Arguments of `torch.optim.SGD` beside the learning rate.
        parts: Sizes of the micro-batches whose gradients add up to one step.
        clip: Argument of `clip_grad_norm_`, or None.
        refresh_after_part: Call `refresh_` after this micro-batch of every step, or never (None).
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    sgd: dict[str, Any] = field(default_factory=dict)
    parts: tuple[int, ...] = (13,)
    clip: float | None = None
    refresh_after_part: int | None = None


HEAVY_BALL = {"momentum": 0.9}
SETTINGS = [
    Setting(name="plain", sgd={"lr": 0.1}),
    Setting(name="momentum", sgd=HEAVY_BALL),
    Setting(name="momentum-decay", sgd=HEAVY_BALL | {"weight_decay": 0.05}),
    Setting(name="nesterov-decay", sgd=HEAVY_BALL | {"nesterov": True, "weight_decay": 0.05}),
    Setting(name="symmetric", sgd=HEAVY_BALL, config={"root": "symmetric"}),
    Setting(name="diagonal", sgd=HEAVY_BALL, config={"fisher": "diagonal"}),
    Setting(name="block", sgd=HEAVY_BALL, config={"fisher": "block", "block_size": 3}),
    Setting(
        name="block-symmetric-micro-batches",
        sgd=HEAVY_BALL,
        parts=(4, 7, 2),
        config={"fisher": "block", "block_size": 2, "root": "symmetric"},
    ),
    Setting(name="sketch", sgd=HEAVY_BALL, config={"fisher": "sketch", "rank": 4}),
    Setting(
        name="sketch-micro-batches",
        sgd=HEAVY_BALL,
        parts=(4, 7, 2),
        config={"fisher": "sketch", "rank": 2},
    ),
    Setting(name="unit", sgd=HEAVY_BALL, config={"fisher": "unit"}),
    Setting(
        name="unit-symmetric-micro-batches",
        sgd=HEAVY_BALL | {"weight_decay": 0.05},
        parts=(4, 7, 2),
        config={"fisher": "unit", "root": "symmetric", "damping_rel_trace": 0.1},
    ),
    *(
        Setting(
            name=f"mean-{fisher}",
            sgd=HEAVY_BALL | {"lr": 0.02},
            clip=1.0,
            config={"fisher": fisher, "block_size": 3, "over_outputs": "mean", "damping_abs": 0.01},
        )
        for fisher in ("shared", "diagonal", "block", "unit", "sketch")
    ),
    Setting(name="thin", sgd=HEAVY_BALL, config={"observe_every": 3, "early_observations": (1,)}),
    Setting(name="unseen", sgd=HEAVY_BALL, config={"observe_every": 9, "refresh_every": 2}),
    Setting(name="damped", sgd=HEAVY_BALL, config={"damping_rel_trace": 0.0, "damping_abs": 0.2}),
    Setting(name="micro-batches", sgd=HEAVY_BALL, parts=(4, 7, 2)),
    Setting(name="clipped", sgd=HEAVY_BALL | {"lr": 0.2}, clip=0.3),
    Setting(
        name="refresh-between-micro-batches",
        sgd=HEAVY_BALL,
        parts=(8, 5),
        refresh_after_part=0,
        config={"ema_decay": 0.0},
    ),
]
KRONECKER = {"fisher": "kronecker"}
SLOW = {"lr": 2e-3, "weight_decay": 0.05}
SETTINGS += [
    Setting(name="kronecker", sgd=HEAVY_BALL | SLOW, config=KRONECKER),
    *(
        Setting(name=f"kronecker-{name}", sgd=HEAVY_BALL, clip=0.1, config=KRONECKER | config)
        for name, config in [
            ("symmetric", {"root": "symmetric"}),
            ("absolute", {"damping_rel_trace": 0.0, "damping_abs": 0.1}),
            ("thin", {"observe_every": 3}),
        ]
    ),
    Setting(
        name="kronecker-micro-batches",
        sgd=HEAVY_BALL,
        config=KRONECKER,
        parts=(4, 7, 2),
        clip=0.1,
    ),
    Setting(
        name="kronecker-refresh-between-micro-batches",
        sgd=HEAVY_BALL,
        config=KRONECKER | {"ema_decay": 0.0},
        parts=(8, 5),
        clip=0.14,
        refresh_after_part=0,
    ),
]


def configuration(setting: Setting) -> Config:
    """Refresh early and every four steps, from all rows."""
    common = Config(
        refresh_every=4,
        early_refreshes=(1, 3),
        observe_every=1,
        early_observations=(),
        step_budget=math.inf,
        ema_decay=0.8,
        damping_rel_trace=1e-2,
        max_rows=None,
        **AS_IN_THE_PAPER,
    )
    return common.replace(**setting.config)


def gradients(model: nn.Module, data: tuple[Tensor, Tensor], setting: Setting, refresh: Any):
    """Add up the gradients of all micro-batches, which are each a part of one mean."""
    model.zero_grad()
    inputs, labels = data
    parts = zip(inputs.split(setting.parts), labels.split(setting.parts), strict=True)
    for index, (some_inputs, some_labels) in enumerate(parts):
        (loss(model(some_inputs), some_labels) / len(labels)).backward()
        if index == setting.refresh_after_part:
            refresh()


def assert_same_parameters(actual: nn.Module, expected: nn.Module, relative: float) -> None:
    """Compare all parameters by name, each relative to its own norm."""
    pairs = zip(actual.named_parameters(), expected.named_parameters(), strict=True)
    for (name, one), (expected_name, other) in pairs:
        assert name == expected_name
        assert (one - other).norm() <= relative * other.norm(), name


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
@pytest.mark.parametrize("network", [MLP, Residual, ConvNet])
def test_sgd_on_the_network_is_natural_descent_on_the_model(network, setting):
    model = network()
    start = copy.deepcopy(model)
    config, sgd = configuration(setting), {"lr": 0.05, **setting.sgd}
    net = sngd.reconstruct(model, config)
    optimizer = torch.optim.SGD(net.parameters(), **sgd)
    layers = {"kronecker": KroneckerLayer, "unit": unit_layers(model)}
    layer = layers.get(config.fisher, Layer)
    reference = NaturalDescent(model, config, sgd, setting.clip, layer)
    for step in range(STEPS):
        data = batch(model, step)
        gradients(net, data, setting, lambda: sngd.refresh_(net))
        gradients(model, data, setting, reference.refresh)
        if setting.clip is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), setting.clip)
        optimizer.step()
        reference.step()
        if step % 6 == 5:
            assert_same_parameters(sngd.fold(net), model, 1e-9)
    moved = [p - q for p, q in zip(model.parameters(), start.parameters(), strict=True)]
    assert all(difference.norm() > 2e-3 for difference in moved)


def train(network: type[nn.Module], config: Config) -> nn.Module:
    """Train from the same start on the same batches, with momentum."""
    torch.manual_seed(5)
    net = sngd.reconstruct(network(), config)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        gradients(net, batch(net, step), SETTINGS[0], None)
        optimizer.step()
    return sngd.fold(net)


@pytest.mark.parametrize("network", [MLP, Residual, ConvNet])
@pytest.mark.parametrize("root", ["symmetric", "denman_beavers"])
def test_every_exact_root_gives_the_same_trajectory(network, root):
    config = configuration(SETTINGS[0])
    cholesky, other = (train(network, config.replace(root=r)) for r in ("cholesky", root))
    assert_same_parameters(cholesky, other, 1e-9)


@pytest.mark.parametrize("network", [MLP, Residual, ConvNet])
def test_a_row_limit_above_the_batch_changes_nothing(network):
    config = configuration(SETTINGS[0])
    folded = [train(network, config.replace(max_rows=rows)) for rows in (None, 100_000)]
    assert_same_parameters(*folded, 0.0)
