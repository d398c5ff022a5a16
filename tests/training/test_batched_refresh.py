"""Factors of one shape are decomposed in one call, whatever layers they belong to."""

from functools import partial

import pytest
import torch
from torch import nn

import sngd_compile as sngd
import sngd_kernels
from api import EVERY_STEP, apart, batch, train
from sngd_compile import SngdWarning


@pytest.mark.parametrize(
    ("root", "op"),
    [
        ("cholesky", "cholesky_inverse_ex"),
        ("symmetric", "eigen_root_ex"),
        ("denman_beavers", "denman_beavers"),
    ],
)
def test_layers_of_one_shape_share_a_call(monkeypatch, root, op):
    shapes = []
    original = getattr(sngd_kernels, op)

    def spy(matrices, *args, **kwargs):
        shapes.append(tuple(matrices.shape))
        return original(matrices, *args, **kwargs)

    monkeypatch.setattr(sngd_kernels, op, spy)
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3, bias=False))
    net = sngd.reconstruct(model, EVERY_STEP.replace(root=root))
    train(net, steps=1)
    assert sorted(shapes) == [(1, 5, 5), (2, 6, 6)]
    assert apart(net, sngd.fold(net), batch(3)) < 1e-5
    first, second, _ = [layer.root for layer in sngd.fisher_layers(net).values()]
    assert not torch.allclose(first, second)


def test_an_iteration_that_does_not_converge_gives_way_to_eigh_and_says_so(monkeypatch):
    hasty = partial(sngd_kernels.denman_beavers, iterations=1)
    monkeypatch.setattr(sngd_kernels, "denman_beavers", hasty)
    net = sngd.reconstruct(nn.Linear(4, 2).double(), EVERY_STEP.replace(root="denman_beavers"))
    net(torch.randn(6, 4, dtype=torch.float64))
    with pytest.warns(
        SngdWarning, match="weight: denman_beavers: the residual is .* eigh was taken"
    ):
        sngd.refresh_(net)
    net(torch.ones(6, 4, dtype=torch.float64))
    sngd.refresh_(net)  # said once
    layer = net.weight_fisher
    identity = torch.eye(5, dtype=torch.float64)
    applied = layer.root @ (layer.factor + layer.damping * identity) @ layer.root
    torch.testing.assert_close(applied, identity, rtol=0, atol=1e-9)
