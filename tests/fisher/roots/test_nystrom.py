"""`root="nystrom"`: the symmetric root at full rank; below, the same laws with a coarser metric."""

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from api import EVERY_STEP, apart, batch, train
from laws import Subject, linear_case
from laws.suite import (
    descent_is_natural,
    folding_gives_the_plain_layer,
    refreshing_keeps_the_function,
    rewriting_keeps_the_function,
    root_whitens_the_factor,
)
from sngd_compile import ConfigError, SngdWarning

pytestmark = pytest.mark.usefixtures("float64")

NYSTROM = EVERY_STEP.replace(root="nystrom")
LAWS = [
    rewriting_keeps_the_function,
    refreshing_keeps_the_function,
    folding_gives_the_plain_layer,
    descent_is_natural,
    root_whitens_the_factor,
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("law", LAWS)
def test_laws_at_full_rank(law, bias):
    law(Subject(linear_case(3, 4, (7,), bias), "nystrom"))


def test_full_rank_follows_the_trajectory_of_the_symmetric_root():
    networks = []
    for root in ("nystrom", "symmetric"):
        torch.manual_seed(0)
        net = sngd.reconstruct(nn.Linear(5, 3), EVERY_STEP.replace(root=root, rank=6))
        train(net, steps=7)
        networks.append(sngd.fold(net))
    assert apart(*networks, batch(9)) < 1e-10


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(lambda: nn.Linear(12, 3), id="linear"),
        pytest.param(lambda: nn.Linear(12, 3, bias=False), id="no bias"),
        pytest.param(lambda: nn.Conv1d(12, 6, 1, groups=2), id="grouped"),
    ],
)
def test_a_low_rank_keeps_the_function_and_steps_by_its_own_metric(layer):
    config = NYSTROM.replace(rank=3)
    net = sngd.reconstruct(layer(), config)
    x = torch.randn(9, 12, *(() if isinstance(net, nn.Linear) else (4,)))
    before = net(x)
    sngd.refresh_(net)
    fisher = net.weight_fisher
    assert fisher.root_buffers.gains.shape[-1] == 3
    torch.testing.assert_close(net(x), before)
    plain = sngd.fold(net)
    torch.testing.assert_close(plain(x), before)
    for model in (net, plain):
        model(x).square().sum().backward()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    root = fisher.root
    g = fisher.layout.matrices(plain.weight.grad)
    if plain.bias is not None:
        g = torch.cat([g, fisher.layout.vectors(plain.bias.grad)[..., None]], -1)
    step = (g @ root.mT @ root)[..., : fisher.layout.width].reshape(plain.weight.shape)
    old = plain.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(sngd.fold(net).weight, old - 0.01 * step)


def test_few_rows_and_many_take_the_same_function():
    net = sngd.reconstruct(nn.Linear(12, 3), NYSTROM.replace(rank=4))
    train(net, inputs=lambda step: batch(step, width=12))
    for count in (1, 300):
        x = batch(9, count, 12)
        assert apart(net, sngd.fold(net), x) < 1e-12


def test_both_sides_of_a_kronecker_kind():
    config = NYSTROM.replace(fisher="kronecker", damping_rel_trace=1e-2, rank=3)
    net = sngd.reconstruct(nn.Linear(5, 4), config)
    train(net, steps=4)
    assert apart(net, sngd.fold(net), batch(9)) < 1e-11


def test_a_singular_factor_keeps_the_root_and_says_so():
    net = sngd.reconstruct(nn.Linear(3, 2), NYSTROM.replace(damping_rel_trace=0.0))
    net(torch.zeros(4, 3))
    with pytest.warns(SngdWarning, match="not positive definite"):
        sngd.refresh_(net)
    torch.testing.assert_close(net.weight_fisher.root, torch.eye(4))


def test_the_plan_counts_two_skinny_products_each_way():
    (site,) = sngd.explain(nn.Linear(100, 3), NYSTROM.replace(rank=5)).sites
    assert site.step_work == 4 * 300 * 5
    (layer,) = sngd.fisher_layers(sngd.reconstruct(nn.Linear(100, 3), site.config)).values()
    assert site.state_bytes == sum(buffer.nbytes for buffer in layer.buffers())


def test_a_rank_below_1_is_refused():
    with pytest.raises(ConfigError, match=r"Config\.rank = 0: expected an integer in \[1, "):
        NYSTROM.replace(rank=0)


def test_a_compiled_models_state_keeps_its_rank():
    torch._dynamo.reset()
    options = {"root": "nystrom", "rank": 3, "early_refreshes": (1, 2), "inner_backend": "eager"}
    model, other = nn.Linear(5, 3), nn.Linear(5, 3)
    train(torch.compile(model, backend="sngd", options=options), steps=2)
    sngd.load_state_dict(other, sngd.state_dict(model))
    train(torch.compile(other, backend="sngd", options=options), steps=2, first=2)
    (layer,) = sngd.fisher_layers(other).values()
    assert layer.root_buffers.gains.shape == (3,)
    assert layer.config.rank == 3
