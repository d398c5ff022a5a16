"""All laws hold on networks of every kind of layer, by the rounding of their dtype."""

import pytest
import torch

import sngd_compile as sngd
from api import FISHERS
from sngd_compile.verification.report import LAWS
from verify import NETWORKS, failing, holding, made

ALL = list(LAWS)


DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_hold(name, dtype):
    model, batch = made(name, dtype)
    report = sngd.verify(model, batch)
    assert holding(report) == ALL, str(report)
    assert report.ok
    assert report.exit_code == 0
    largest = {check.name: check.error for check in report.checks}
    assert largest["state"] == largest["observed"] == largest["reconstruct"] == 0.0


def trained(name, config=None):
    """A reconstructed network after some training, its optimizer and a batch."""
    model, batch = made(name)
    net = sngd.reconstruct(model, config)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        output = net(batch)
        output = output["logits"] if isinstance(output, dict) else output
        (output[0] if isinstance(output, tuple) else output).square().mean().backward()
        optimizer.step()
    return net, optimizer, batch


@pytest.mark.parametrize("name", NETWORKS)
def test_all_hold_after_training(name):
    net, _, batch = trained(name)
    report = sngd.verify(net, batch)
    assert holding(report) == ALL, str(report)


@pytest.mark.parametrize("fisher", FISHERS)
def test_all_hold_for_every_kind(fisher):
    for name in ("mlp", "conv"):
        model, batch = made(name)
        report = sngd.verify(model, batch, config=FISHERS[fisher])
        assert not failing(report), str(report)
        assert {"refresh", "natural step", "state"} < {*holding(report)}


def test_overrides_of_a_network_are_those_of_its_copies():
    model, batch = made("mlp")
    config = sngd.Config(fisher="diagonal")
    net = sngd.reconstruct(model, overrides={"0.*": config, "3.weight": None})
    report = sngd.verify(net, batch)
    assert holding(report) == ALL, str(report)


def test_a_model_of_transformers():
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 13}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    tokens = torch.randint(13, (2, 6))
    report = sngd.verify(model, input_ids=tokens, labels=tokens, loss=lambda output: output.loss)
    assert holding(report) == ALL, str(report)
    assert sngd.verify(model, input_ids=tokens).ok


def test_rows_that_no_rule_counts_fail_no_weight():
    """A weight that is cast before it is used: what was seen is not all that happens to it."""

    class Cast(torch.nn.Linear):
        def forward(self, x):
            return torch.nn.functional.linear(x, self.weight.to(torch.float64), self.bias)

    report = sngd.verify(torch.nn.Sequential(Cast(5, 3).double()), torch.randn(4, 5).double())
    assert not failing(report)
