"""Muon on both networks: one page, and what cannot have it is refused by name."""

import json

import pytest
import torch

import sngd_compile as sngd
from benchmarks_tiny import TINY, invoke
from contenders import Recipe, muon, muon_on_white_inputs
from study import muon as script


@pytest.mark.usefixtures("thread_count")
def test_both_are_on_one_page(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "BY_NAME", {"tiny": TINY})
    options = ["--steps", 12, "--seeds", 1, "--rates", 2, "--output", tmp_path]
    done = invoke(script.main, *options)
    assert done.exit_code == 0, done.output
    (content,) = json.loads((tmp_path / "muon.json").read_text())
    names = [one["contender"] for one in content["contenders"]]
    assert names == ["Muon", "Muon, reconstructed"]
    page = (tmp_path / "muon.md").read_text()
    assert all(f"| {name} |" in page for name in names)
    refused = invoke(script.main, *options, "--tasks", "conv")
    assert refused.exit_code == 2
    assert "conv" in refused.output


def test_what_is_not_reconstructed_takes_the_steps_of_the_plain_network():
    inputs = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(16) % 3
    trainees = [prepare(TINY.model(0), Recipe(0.02)) for prepare in (muon, muon_on_white_inputs)]
    layers = sngd.fisher_layers(trainees[1].network)
    assert list(layers) == ["0.weight"]
    for trainee in trainees:
        trainee.step(inputs, targets)
    plain, folded = (trainee.finish(trainee.network).state_dict() for trainee in trainees)
    # Before the first refresh the root is the identity, so all steps are the same.
    torch.testing.assert_close(folded, plain, rtol=1e-5, atol=1e-6)
