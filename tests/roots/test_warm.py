"""`root="warm"`: a step from the root before where that is near, else a new one; it is counted."""

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from api import EVERY_STEP, apart, batch, train
from laws import linear_case
from laws.suite import (
    descent_is_natural,
    folding_gives_the_plain_layer,
    refreshing_keeps_the_function,
    rewriting_keeps_the_function,
)
from sngd_compile import SngdWarning
from sngd_compile.fisher.roots.decompose import NEAR

pytestmark = pytest.mark.usefixtures("float64")

WARM = EVERY_STEP.replace(root="warm")
CONDITIONS = [1e2, 1e4, 1e6, 1e8, 1e10, 1e12]


def rows(width=20, count=90, decades=0.0):
    mixing = torch.linalg.qr(torch.randn(width, width)).Q
    return torch.randn(count, width) * torch.logspace(0, -decades / 2, width) @ mixing


def refreshed(net, x):
    net(x)
    sngd.refresh_(net)
    return net.weight_fisher


def residual(layer, root):
    """The Frobenius norm of `I - R (G + damping) R^T`."""
    eye = torch.eye(layer.size)
    return float(
        torch.linalg.matrix_norm(eye - root @ (layer.factor + layer.damping * eye) @ root.mT)
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_step_squares_the_residual(condition, bias):
    config = WARM.replace(damping_rel_trace=1 / condition, ema_decay=0.0)
    net = sngd.reconstruct(nn.Linear(20, 3, bias=bias), config)
    x = rows(decades=torch.tensor(condition).log10().item() + 1)
    layer = refreshed(net, x)
    assert residual(layer, layer.root) < 1e-14 * condition + 1e-13
    old = layer.root
    refreshed(net, 1.01 * x)
    before = residual(layer, old)
    assert 1e-2 < before < NEAR
    assert residual(layer, layer.root) < 0.8 * before**2 + 1e-14 * condition
    assert (layer.warm_roots, layer.fresh_roots) == (1, 1)


def test_a_far_root_is_found_anew_and_exact():
    net = sngd.reconstruct(nn.Linear(20, 3), WARM.replace(ema_decay=0.0))
    layer = refreshed(net, rows())
    refreshed(net, 2 * rows())
    assert residual(layer, layer.root) < 1e-12
    assert (layer.warm_roots, layer.fresh_roots) == (0, 2)
    assert "0 of 2 roots were a step from the one before" in str(sngd.explain(net))


def test_layers_of_one_batch_are_judged_one_by_one():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    net = sngd.reconstruct(net, WARM.replace(ema_decay=0.0))
    near, far = net[0].weight_fisher, net[1].weight_fisher
    x, y = rows(6), rows(6)
    for scale in (1.0, 3.0):
        net[0](1.001 * x if scale > 1 else x)
        net[1](scale * y)
        sngd.refresh_(net)
    assert (near.warm_roots, near.fresh_roots) == (1, 1)
    assert (far.warm_roots, far.fresh_roots) == (0, 2)
    assert residual(far, far.root) < 1e-12 < residual(near, near.root) < 1e-4


def test_grouped_factors_are_near_together():
    net = sngd.reconstruct(nn.Conv1d(4, 6, 3, groups=2), WARM.replace(ema_decay=0.0))
    x = torch.randn(30, 4, 9)
    shifted = torch.cat([x[:, :2], 3 * x[:, 2:]], 1)  # one group moves far away
    for images, expected in ((x, (0, 1)), (1.001 * x, (1, 1)), (shifted, (1, 2))):
        layer = refreshed(net, images)
        assert (layer.warm_roots, layer.fresh_roots) == expected


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "law",
    [
        rewriting_keeps_the_function,
        refreshing_keeps_the_function,
        folding_gives_the_plain_layer,
        descent_is_natural,
    ],
)
def test_laws(law, bias):
    law(linear_case(3, 4, (7,), bias), "warm")


def test_a_singular_factor_keeps_the_root_and_says_so():
    net = sngd.reconstruct(nn.Linear(3, 2), WARM.replace(damping_rel_trace=0.0))
    net(torch.ones(4, 3))
    with pytest.warns(SngdWarning, match="not positive definite"):
        sngd.refresh_(net)
    layer = net.weight_fisher
    assert torch.equal(layer.root, torch.eye(4))
    assert layer.warm_roots + layer.fresh_roots == 0


def test_both_sides_of_a_kronecker_kind():
    config = WARM.replace(fisher="kronecker", damping_rel_trace=1e-2)
    net = sngd.reconstruct(nn.Linear(5, 4), config)
    train(net, steps=4)
    assert apart(net, sngd.fold(net), batch(9)) < 1e-12
    assert net.weight_fisher.fresh_roots + net.weight_fisher.warm_roots == 6


def test_a_compiled_model_takes_and_reports_it():
    torch._dynamo.reset()
    model = nn.Linear(5, 3)
    options = {"root": "warm", "early_refreshes": (1, 2), "early_observations": (1,)}
    net = torch.compile(model, backend="sngd", options={**options, "inner_backend": "eager"})
    train(net, steps=2)
    assert "of 2 roots were a step from the one before" in str(sngd.explain(net))
