"""Networks, batches and arguments that are out of the ordinary."""

import random

import numpy
import pytest
import torch
from torch import nn

import sngd_compile as sngd
from sngd_compile import ConfigError, ModelError
from sngd_compile.verification.report import LAWS
from verify import failing, holding, made

ALL = list(LAWS)


class Random(nn.Module):
    """Draws from three generators, and one of its own."""

    def __init__(self):
        super().__init__()
        self.layer, self.own = nn.Linear(5, 3), torch.Generator().manual_seed(1)

    def forward(self, x):
        x = x + torch.randn(x.shape, generator=self.own) + random.random() + numpy.random.rand()
        return nn.functional.dropout(self.layer(x), 0.5)


class Branches(nn.Module):
    """Uses another layer where the numbers are large."""

    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x):
        return (self.small if x.mean() < 1 else self.large)(x)


def test_a_random_forward():
    report = sngd.verify(Random(), torch.randn(6, 5))
    assert holding(report) == ALL[:-1], str(report)
    assert report.ok  # no state dict holds the generator, of the plain model neither


def test_classes_that_each_copy_has_anew_are_the_same():
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    assert holding(sngd.verify(model, torch.randn(6, 5))) == ALL


def test_a_branch_that_is_not_taken_is_named():
    report = sngd.verify(Branches(), torch.randn(6, 5))
    assert failing(report) == ["observed"]
    check = next(check for check in report.checks if check.name == "observed")
    assert check.layer == "large.weight"
    assert check.error == 1
    assert "plain descent" in str(report)


def test_frozen_parameters_before_and_after():
    model, batch = made("mlp")
    model[0].requires_grad_(False)
    assert holding(sngd.verify(model, batch)) == ALL
    net = sngd.reconstruct(model)
    net[3].weight.requires_grad_(False)
    report = sngd.verify(net, batch)
    assert not failing(report), str(report)
    net = sngd.reconstruct(made("mlp")[0])
    net[3].requires_grad_(False)
    report = sngd.verify(net, batch)
    assert not failing(report), str(report)
    assert "frozen" in str(report)


@pytest.mark.parametrize("model", [nn.Tanh(), nn.Sequential(nn.Flatten(), nn.Softmax(-1))])
def test_without_sites(model):
    report = sngd.verify(model, torch.randn(3, 5))
    assert holding(report) == ["forward", "reconstruct", "fold"]
    assert "no weight is reconstructed" in str(report)


def test_an_empty_batch():
    model, _ = made("mlp")
    report = sngd.verify(model, torch.zeros(0, 5, dtype=torch.float64))
    assert not failing(report), str(report)
    assert "the batch is empty" in str(report)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite(number):
    model, batch = made("mlp")
    batch[2, 1] = number
    report = sngd.verify(model, batch)
    assert failing(report) == ["observed"], str(report)
    assert "not finite" in str(report)


def test_an_eval_network_with_one_sample():
    """A BatchNorm cannot train on it: the function is compared, the rest does not apply."""
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).eval()
    report = sngd.verify(model, torch.randn(1, 5))
    assert holding(report) == ["forward", "reconstruct"], str(report)
    assert report.ok
    assert "does not train on this batch" in str(report)
    assert not model.training
    assert holding(sngd.verify(model, torch.randn(7, 5))) == ALL


def test_a_compiled_network_is_unwrapped():
    model, batch = made("mlp")
    assert sngd.verify(torch.compile(sngd.reconstruct(model), backend="eager"), batch).ok


def test_autocast():
    model, batch = made("mlp", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = sngd.verify(model, batch)
    assert not failing(report), str(report)


def test_a_loss_without_gradients():
    model, batch = made("mlp")
    report = sngd.verify(model, batch, loss=lambda output: output.detach().sum())
    assert not failing(report), str(report)


def test_wrong_arguments():
    model, batch = made("mlp")
    for error, call in (
        (ModelError, lambda: sngd.verify(torch.randn, batch)),
        (ModelError, lambda: sngd.verify(model, batch, loss="mean")),
        (ModelError, lambda: sngd.verify(model, batch, loss=lambda output: output)),
        (ModelError, lambda: sngd.verify(model, batch, loss=lambda output: 1.0)),
        (ModelError, lambda: sngd.verify(model, batch[:, 1:])),
        (ModelError, lambda: sngd.verify(model, batch, mask=None)),
        (ModelError, lambda: sngd.verify(model)),
        (ModelError, lambda: sngd.verify(nn.Sequential(), [(x for x in "ab")])),
        (ConfigError, lambda: sngd.verify(model, batch, config={})),
        (ConfigError, lambda: sngd.verify(sngd.reconstruct(model), batch, config=sngd.Config())),
    ):
        with pytest.raises(error):
            call()
