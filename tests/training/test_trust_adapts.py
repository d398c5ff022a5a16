"""A layer's trust region shrinks where its steps take each other back, and recovers."""

import copy
import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import sngd_compile as sngd
from api import EVERY_STEP, apart, batch, mlp
from sngd_compile.fisher.spec import BYTES, LENGTH, TEXT
from sngd_compile.fisher.trust import LEAST, Trust
from sngd_compile.training.steps.trust_region import ADAPTS_EVERY

pytestmark = pytest.mark.usefixtures("float64")
RATE = 2.0
CONFIG = EVERY_STEP.replace(trust_radius=0.05, trust_share=0.2, trust_rate=0.1)

NO_REFRESH = CONFIG.replace(refresh_every=1000, early_refreshes=())


def start(config: sngd.Config = CONFIG, **settings: object) -> tuple[nn.Module, SGD]:
    """Return a reconstructed network and its optimizer."""
    torch.manual_seed(0)
    net = sngd.reconstruct(mlp(), config)
    return net, SGD(net.parameters(), lr=RATE, **({"momentum": 0.9} | settings))


def backward(net: nn.Module, optimizer: SGD, step: int) -> None:
    """Leave the gradients of one batch."""
    optimizer.zero_grad()
    (3 * net(batch(step)) - 1).square().mean().backward()


def shares(net: nn.Module) -> list[float]:
    """Return how much of its trust region each layer has."""
    return [layer.trust.share for layer in sngd.fisher_layers(net).values()]


def agreement(linear: nn.Linear, optimizer: SGD) -> float:
    """Return the cosine between a layer's gradient and its momentum."""
    pairs = [(p.grad, optimizer.state[p]["momentum_buffer"]) for p in linear.parameters()]
    gradient, momentum = (
        torch.cat([t.flatten() for t in tensors]) for tensors in zip(*pairs, strict=True)
    )
    return float(torch.cosine_similarity(gradient, momentum, dim=0))


def test_the_share_is_the_product_of_what_the_agreements_say():
    net, optimizer = start()
    expected = [1.0, 1.0]
    for step in range(10 * ADAPTS_EVERY):
        backward(net, optimizer, step)
        if step and step % ADAPTS_EVERY == 0:
            for index, linear in enumerate((net[0], net[2])):
                factor = math.exp(ADAPTS_EVERY * 0.1 * agreement(linear, optimizer))
                expected[index] = min(1.0, expected[index] * factor)
        optimizer.step()
        assert shares(net) == pytest.approx(expected, rel=1e-12)
    assert min(expected) < 1.0


def push(signs: list[int], **settings: object) -> float:
    """Give one direction, with these signs, as the gradients of all steps; return a share."""
    net, optimizer = start(NO_REFRESH, **settings)
    directions = [torch.randn_like(p) for p in net.parameters()]
    for sign in signs:
        for parameter, direction in zip(net.parameters(), directions, strict=True):
            parameter.grad = sign * direction
        optimizer.step()
    return shares(net)[0]


BACK_AND_FORTH = [1, -1] * 10
TIMES = (len(BACK_AND_FORTH) - 1) // ADAPTS_EVERY


@pytest.mark.parametrize("maximize", [False, True])
def test_steps_that_take_each_other_back_shrink_it_and_others_win_it_back(maximize):
    least = push(BACK_AND_FORTH, maximize=maximize)
    assert least == pytest.approx(math.exp(-0.1 * ADAPTS_EVERY * TIMES), rel=1e-12)
    assert push([1] * 20, maximize=maximize) == 1.0
    assert push(BACK_AND_FORTH + [1] * 40, maximize=maximize) == 1.0


def test_there_is_always_some_left():
    assert push([1, -1] * 300) == pytest.approx(LEAST)


@pytest.mark.parametrize("settings", [{"momentum": 0.0}, {"trust_rate": 0.0}])
def test_without_momentum_or_rate_it_stays(settings):
    rate = settings.pop("trust_rate", 0.1)
    net, optimizer = start(CONFIG.replace(trust_rate=rate), **settings)
    for step in range(12):
        backward(net, optimizer, step)
        optimizer.step()
    assert shares(net) == [1.0, 1.0]


def test_a_share_of_the_bound_is_all_that_a_gradient_may_have():
    net, optimizer = start(NO_REFRESH.replace(trust_share=None))
    backward(net, optimizer, 0)
    for layer, share in zip(sngd.fisher_layers(net).values(), (0.5, 0.01), strict=True):
        layer.trust.share = share
    optimizer.step()
    lengths = [math.hypot(*(float(p.grad.norm()) for p in net[i].parameters())) for i in (0, 2)]
    # In the metric that sums over outputs the unit is the root of their number.
    assert lengths == pytest.approx([0.05 * 0.5 * 2, 0.05 * 0.01 * math.sqrt(3)], rel=1e-12)


def test_a_gradient_that_is_not_finite_says_nothing():
    net, optimizer = start()
    for step in range(ADAPTS_EVERY):
        backward(net, optimizer, step)
        optimizer.step()
    before = shares(net)
    backward(net, optimizer, ADAPTS_EVERY)
    net[0].weight.grad[0, 0] = math.nan
    with pytest.warns(sngd.SngdWarning, match="not finite"):
        optimizer.step()
    assert shares(net)[0] == before[0]


@pytest.mark.parametrize("pause", [4, 7, 13])
def test_a_resumed_run_goes_on_with_the_region_that_it_had(pause):
    config = CONFIG.replace(observe_every=6, refresh_every=10)
    undisturbed, optimizer = start(config)
    for step in range(20):
        if step == pause:
            resumed, other = start(config)
            resumed.load_state_dict(copy.deepcopy(undisturbed.state_dict()))
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        backward(undisturbed, optimizer, step)
        optimizer.step()
    for step in range(pause, 20):
        backward(resumed, other, step)
        other.step()
    assert shares(resumed) == shares(undisturbed)
    assert apart(resumed, undisturbed) == 0.0


def test_the_size_of_a_weight_is_that_of_its_present_coordinates():
    net, optimizer = start(CONFIG.replace(observe_every=5, refresh_every=3, early_refreshes=()))
    for step in range(6):
        backward(net, optimizer, step)
        optimizer.step()
        norms = [layer.trust.prime_norm for layer in sngd.fisher_layers(net).values()]
        assert (None in norms) == (step in (2, 5))  # another root was made
    backward(net, optimizer, 6)
    sizes = [math.hypot(*(float(p.detach().norm()) for p in net[i].parameters())) for i in (0, 2)]
    optimizer.step()
    norms = [layer.trust.prime_norm for layer in sngd.fisher_layers(net).values()]
    assert norms == pytest.approx(sizes, rel=1e-12)


def without(state: Tensor, *names: str, **others: str) -> Tensor:
    """Return the record of a Fisher layer without some fields, or with others."""
    text = bytes(state[TEXT:].view(torch.uint8)[: int(state[LENGTH])].tolist())
    fields = {key: value for key, value in json.loads(text).items() if key not in names}
    changed = json.dumps(fields | others).encode()
    padded = changed.ljust(-(-len(changed) // BYTES) * BYTES, b"\0")
    entries = torch.frombuffer(bytearray(padded), dtype=torch.int64)
    return torch.cat([state[:LENGTH], torch.tensor([len(changed)]), entries])


def state_of_trained() -> dict:
    """Return the state of a network whose regions have shrunk."""
    net, optimizer = start()
    for step in range(12):
        backward(net, optimizer, step)
        optimizer.step()
    assert min(shares(net)) < 1.0
    return net.state_dict()


def test_files_of_before_have_whole_regions():
    state = state_of_trained()
    for key in [key for key in state if key.endswith("_extra_state")]:
        state[key] = without(state[key], "trust", "prime_norm")
    net, _ = start()
    net.load_state_dict(state)
    assert [layer.trust for layer in sngd.fisher_layers(net).values()] == [Trust(), Trust()]


@pytest.mark.parametrize("fields", [{"trust": "nan"}, {"trust": "2"}, {"prime_norm": "inf"}])
def test_a_region_that_cannot_be_is_refused_and_nothing_is_loaded(fields):
    state = state_of_trained()
    key = [key for key in state if key.endswith("_extra_state")][-1]
    state[key] = without(state[key], **fields)
    net, _ = start()
    before = copy.deepcopy(sngd.fisher_layers(net)["2.weight"].state_dict())
    with pytest.raises(sngd.ModelError, match=r"2\.weight: _extra_state .* is damaged: a share of"):
        net.load_state_dict(state)
    after = sngd.fisher_layers(net)["2.weight"].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
