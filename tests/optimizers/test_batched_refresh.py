"""Factors of one shape are decomposed in one call, whatever layers they belong to."""

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


def test_an_iteration_that_does_not_converge_gives_way_to_eigh_and_says_so():
    # The factor has rank 2 and a norm of 20, so this damping makes its condition number 2e11. The
    # iteration raises the smallest eigenvalue by at most 9/4 a step, in 30 steps by 4e10, so it
    # does not converge on any processor. What eigh leaves is the rounding unit times the condition
    # number, 5e-5, times a small multiple that depends on the processor: the size squared is ample.
    config = EVERY_STEP.replace(root="newton_schulz", damping_rel_trace=0.0, damping_abs=1e-10)
    net = sngd.reconstruct(nn.Linear(4, 2, dtype=torch.float64), config)
    net(torch.arange(6.0, dtype=torch.float64)[:, None].expand(6, 4))
    with pytest.warns(
        SngdWarning, match="weight: newton_schulz: the residual is .* eigh was taken"
    ):
        sngd.refresh_(net)
    net(torch.ones(6, 4, dtype=torch.float64))
    sngd.refresh_(net)  # said once
    layer = net.weight_fisher
    damped = layer.factor + layer.damping * torch.eye(5, dtype=torch.float64)
    applied = layer.root @ damped @ layer.root
    rounding = torch.finfo(torch.float64).eps * torch.linalg.matrix_norm(damped) / layer.damping
    error = torch.linalg.matrix_norm(applied - torch.eye(5, dtype=torch.float64))
    assert error < 5**2 * rounding < 0.1  # the iteration leaves 0.8
