"""Every model of the zoo keeps its function, trains, folds, and accounts for its parameters."""

import math

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from sngd_compile import Config

pytest.importorskip("transformers")

from zoo import ZOO, ZooCase

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SHARE = 0.99
EARLY = Config(early_refreshes=(1, 2, 5, 10))


@pytest.fixture(params=ZOO, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> ZooCase:
    """One model."""
    return request.param


def tolerance(case: ZooCase) -> float:
    """Round off, a thousand times."""
    return 1e3 * torch.finfo(case.dtype).eps


def assert_same_loss(case: ZooCase, net: nn.Module, model: nn.Module) -> None:
    """Compare the losses in train and in eval mode, with the same random numbers."""
    for training in (True, False):
        losses = [float(case.loss_of(m.train(training)).detach()) for m in (net, model)]
        assert losses[0] == pytest.approx(losses[1], rel=tolerance(case))


def train(case: ZooCase, net: nn.Module, steps: int) -> list[float]:
    """Train as the documentation recommends and return the losses."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = case.loss_of(net)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_the_function_stays(case: ZooCase):
    model = case.build()
    net = sngd.reconstruct(model)
    assert_same_loss(case, net, model)
    for one in (net.train(), model.train()):
        case.loss_of(one)
    assert_same_loss(case, sngd.refresh_(net), model)


def test_it_trains_and_folds(case: ZooCase):
    model = case.build()
    net = sngd.reconstruct(model, EARLY)
    losses = train(case, net, 20)
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.9 * losses[0]
    assert all(bool(p.isfinite().all()) for p in net.parameters())
    plain = sngd.fold(net)
    assert type(plain) is type(model)
    assert list(plain.state_dict()) == list(model.state_dict())
    assert_same_loss(case, net, plain)
    model.load_state_dict(plain.state_dict())
    assert_same_loss(case, plain, model)


@pytest.mark.parametrize(
    "case", [c for c in ZOO if c.name in {"GPT-2", "Llama", "T5", "Mamba"}], indirect=True
)
def test_it_generates_what_the_folded_model_does(case: ZooCase):
    net = sngd.reconstruct(case.build(), EARLY)
    train(case, net, 3)
    seen = [layer.rows_seen for layer in sngd.fisher_layers(net).values()]
    prompt, options = case.inputs()["input_ids"], {"max_new_tokens": 6, "do_sample": False}
    generated = net.eval().generate(prompt, **options)
    assert generated.shape[1] > 1
    assert torch.equal(generated, sngd.fold(net).generate(prompt, **options))
    assert seen == [layer.rows_seen for layer in sngd.fisher_layers(net).values()]


def test_it_accounts_for_every_parameter(case: ZooCase):
    model = case.build()
    plan = sngd.explain(model)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    reconstructed = sum(site.parameter_count for site in plan.sites)
    left = {skip.name: skip.reason for skip in plan.skips if skip.name in sizes}
    assert reconstructed + sum(sizes[name] for name in left) == sum(sizes.values())
    bare = sum(sizes[n] for n, text in left.items() if "identity" in text or "frozen" in text)
    assert reconstructed >= SHARE * (sum(sizes.values()) - bare), left


def test_what_the_plan_promises_is_observed(case: ZooCase):
    net = sngd.reconstruct(case.build())
    case.loss_of(net)
    unseen = [name for name, layer in sngd.fisher_layers(net).items() if layer.rows_seen == 0]
    assert unseen == []


@pytest.mark.parametrize("case", [c for c in ZOO if c.loss is ZooCase.loss], indirect=True)
def test_a_folded_model_is_saved_and_loaded(case: ZooCase, tmp_path):
    net = sngd.reconstruct(case.build(), EARLY)
    train(case, net, 3)
    plain = sngd.fold(net)
    plain.save_pretrained(tmp_path)
    loaded = type(plain).from_pretrained(tmp_path, dtype=case.dtype)
    assert_same_loss(case, loaded, plain)
