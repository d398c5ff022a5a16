"""Normalisations keep their running statistics; what is observed of them, and what is said."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config

NETWORKS = {
    "BatchNorm2d": lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)),
    "BatchNorm2d averaging": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3, momentum=None)
    ),
    "InstanceNorm2d": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_running_statistics_are_those_of_the_plain_model(name):
    model = NETWORKS[name]()
    net = sngd.reconstruct(model, Config(observe_every=1))
    for step, training in enumerate((True, True, False, True)):
        x = torch.randn(4, 2, 4, 5)
        outputs = model.train(training)(x), net.train(training)(x)
        torch.testing.assert_close(*outputs)
        for buffer, expected in model.named_buffers():
            assert torch.equal(net.get_buffer(buffer), expected), (step, buffer)
    for buffer, expected in model.named_buffers():
        assert torch.equal(sngd.fold(net).get_buffer(buffer), expected)


@pytest.mark.parametrize("shape", [(600, 2), (40, 2, 5, 3)])
def test_drawn_rows_say_of_batch_statistics_what_all_of_them_do(shape):
    layer, x = nn.BatchNorm1d(2) if len(shape) == 2 else nn.BatchNorm2d(2), torch.randn(shape)
    factors = []
    for most in (1, None):
        net = sngd.reconstruct(copy.deepcopy(layer), Config(max_rows=most))
        net(x * 3 + 5)
        fisher = sngd.fisher_layers(sngd.refresh_(net))["weight"]
        assert fisher.rows_seen == (
            x.numel() // 2 if most is None else 256 if len(shape) == 2 else 270
        )
        factors.append(fisher.factor)
    # By their own mean and variance the rows have the moments 1 and 0, but for epsilon.
    torch.testing.assert_close(*factors, rtol=0, atol=1e-5)


def test_narrow_activations_are_normalised_in_float32():
    x = torch.randn(8, 5).bfloat16()
    net = sngd.reconstruct(nn.LayerNorm(5).bfloat16(), Config(max_rows=None))
    net(x)
    factor = sngd.fisher_layers(sngd.refresh_(net))["weight"].factor
    rows = F.layer_norm(x.float(), (5,))
    assert factor.dtype == torch.float32
    torch.testing.assert_close(factor[:, 0, 0], rows.square().mean(0))


def test_the_plan_names_the_rules():
    layers = [nn.LayerNorm((2, 3)), nn.RMSNorm(3), nn.GroupNorm(1, 3), nn.BatchNorm2d(3)]
    layers += [nn.InstanceNorm1d(3, affine=True), nn.InstanceNorm1d(3)]
    sites = sngd.explain(nn.ModuleList(layers)).sites
    assert [site.rule for site in sites] == [
        "layer_norm",
        "rms_norm",
        "group_norm",
        "batch_norm",
        "instance_norm",
    ]
    assert [site.size for site in sites] == [2, 1, 2, 2, 2]
    assert [site.layout.groups for site in sites] == [6, 3, 3, 3, 3]


class Computed(nn.Module):
    """Normalises as its caller says."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, training: bool, eps: float) -> Tensor:
        """Apply two layers."""
        x = F.layer_norm(x, (3,), self.weight, eps=eps)
        return F.batch_norm(x, None, None, self.weight, training=training)


def test_what_is_computed_in_the_forward_is_left_with_a_reason():
    (skip,) = sngd.explain(Computed()).skips
    assert "layer_norm's eps is computed in the forward" in skip.reason
