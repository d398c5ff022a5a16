"""What explains a gain: alignment is an angle, and the gains are those of the study's files."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from benchmarks_tiny import TINY, invoke
from sngd_compile.explain import distinct_sites
from study import why


def test_alignment_is_the_cosine_between_a_gradient_and_the_natural_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3)).double()
    net = sngd.reconstruct(model, sngd.Config(damping_rel_trace=0.1))
    inputs = torch.randn(40, 5, dtype=torch.float64) * torch.arange(1, 6)
    (site,) = distinct_sites(net).values()
    net(inputs).exp().mean().backward()
    assert why.alignment(site) == pytest.approx(1.0)  # the root is the identity
    sngd.refresh_(net)
    net.zero_grad()
    net(inputs).exp().mean().backward()
    plain = nn.Sequential(nn.Linear(5, 3)).double()
    plain.load_state_dict(sngd.fold(net).state_dict())
    plain(inputs).exp().mean().backward()
    gradient = torch.cat([plain[0].weight.grad, plain[0].bias.grad[:, None]], 1)
    natural = gradient @ torch.linalg.inv(site.fisher.metric())
    cosine = torch.cosine_similarity(gradient.flatten(), natural.flatten(), dim=0)
    assert why.alignment(site) == pytest.approx(float(cosine), rel=1e-10)
    assert cosine < 0.9


@pytest.mark.usefixtures("thread_count")
def test_the_page_has_the_gains_of_the_study(tmp_path, monkeypatch):
    other = replace(TINY, name="other")
    monkeypatch.setattr(why, "wanted", lambda names: [TINY, other])
    runs = {"SNGD": [1.0, 2.0, 3.0], "AdamW": [4.0, 4.0, None], "SGD": [None, None, None]}
    contents = [
        {
            "contender": name,
            "runs": [{"goals": [near and {"seconds": near}, None]} for near in seconds],
        }
        for name, seconds in runs.items()
    ]
    (tmp_path / "convergence_tiny.json").write_text(json.dumps({"contenders": contents}))
    done = invoke(why.main, "--steps", 40, "--output", tmp_path)
    assert done.exit_code == 0, done.output
    tiny, without = (tmp_path / "why.md").read_text().splitlines()[-2:]
    assert tiny.startswith("| tiny |")
    assert tiny.endswith("| 0.50 | - |")
    assert without.endswith("| - | - |")
