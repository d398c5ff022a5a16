"""Factors of one shape are decomposed in one call, whatever layers they belong to."""

import torch
from torch import nn

import sngd_compile as sngd
import sngd_kernels
from api import EVERY_STEP, apart, batch, train


def test_layers_of_one_shape_share_a_call(monkeypatch):
    shapes = []
    original = sngd_kernels.cholesky_inverse_ex

    def spy(matrices, *args, **kwargs):
        shapes.append(tuple(matrices.shape))
        return original(matrices, *args, **kwargs)

    monkeypatch.setattr(sngd_kernels, "cholesky_inverse_ex", spy)
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3, bias=False))
    net = sngd.reconstruct(model, EVERY_STEP)
    train(net, steps=1)
    assert sorted(shapes) == [(1, 5, 5), (2, 6, 6)]
    assert apart(net, sngd.fold(net), batch(3)) < 1e-5
    roots = [layer.root for layer in sngd.fisher_layers(net).values()]
    assert not torch.allclose(roots[0], roots[1])
