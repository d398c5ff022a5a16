"""One batch that is far too large: what it adds to a local Fisher is bounded, for every kind."""

import copy
import warnings
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from api import EVERY_STEP
from sngd_compile import Config, SngdWarning
from sngd_compile.fisher.average import FASTEST, OUTLIER

pytestmark = pytest.mark.usefixtures("float64")

KEPT = 0.9
CONFIG = EVERY_STEP.replace(ema_decay=KEPT)
KINDS = ("shared", "sketch", "diagonal", "block", "unit")


def rows(seed: int, size: float = 1.0) -> Tensor:
    return torch.randn(30, 7, generator=torch.Generator().manual_seed(seed)) * size


def network(config: Config = CONFIG) -> nn.Module:
    torch.manual_seed(0)
    return sngd.reconstruct(nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)), config)


def absorb(net: nn.Module, *batches: Tensor) -> nn.Module:
    """Observe each batch and refresh after it, without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SngdWarning)
        for batch in batches:
            net(batch)
            sngd.refresh_(net)
    return net


def trace(net: nn.Module) -> float:
    layer = net[0].weight_fisher
    return layer.damped()[0][1] - CONFIG.damping_abs  # the damping is a share of it


@pytest.mark.parametrize("fisher", KINDS)
@pytest.mark.parametrize("size", [1e2, 1e4, 1e8])
def test_an_outlier_counts_as_a_multiple_of_the_average(fisher, size):
    config = CONFIG.replace(fisher=fisher, ema_decay=0.5)
    usual, hit = (absorb(network(config), *(rows(seed) for seed in range(3))) for _ in range(2))
    before = trace(hit)
    absorb(hit, rows(3, size))
    weight = 0.5 / (1 - 0.5**4)
    assert trace(hit) / before == pytest.approx(1 - weight + weight * OUTLIER, rel=1e-9)
    absorb(usual, rows(3), rows(4))
    absorb(hit, rows(4))
    assert trace(hit) < OUTLIER * trace(usual)


def test_what_is_just_below_counts_in_full_and_what_shrinks_too():
    # The average is old: a young one that is far above the mean may itself be an outlier's.
    past = [rows(seed) for seed in range(9)]
    for size in (4.5, 1e-3):
        net = absorb(network(), *past)
        before = trace(net)
        absorb(net, rows(9, size))
        alone = trace(absorb(network(), rows(9, size)))
        weight = (1 - KEPT) / (1 - KEPT**10)
        assert trace(net) == pytest.approx((1 - weight) * before + weight * alone, rel=1e-9)


def test_inputs_that_have_grown_count_in_full_from_the_second_time_on():
    net = absorb(network(), *(rows(seed) for seed in range(5)))
    absorb(net, rows(5, 1e3), rows(6, 1e3))
    alone = trace(absorb(network(), rows(6, 1e3)))
    weight = (1 - KEPT) / (1 - KEPT**7)
    assert trace(net) == pytest.approx(weight * alone, rel=1e-3)


@pytest.mark.parametrize("size", [1e1, 1e3, 1e6])
def test_a_first_batch_that_was_an_outlier_is_forgotten(size):
    net = absorb(network(), rows(0, size))
    seen = []
    for seed in range(1, 7):
        absorb(net, rows(seed))
        seen.append(trace(net))
    usual = trace(absorb(network(), *(rows(seed) for seed in range(7))))
    assert seen[-1] < 3 * OUTLIER * usual
    assert all(old / new < 2 * FASTEST for old, new in pairwise(seen))


def test_a_silent_batch_takes_nothing_away():
    config = CONFIG.replace(fisher="diagonal")
    net = sngd.reconstruct(nn.Linear(7, 5, bias=False), config)
    absorb(net, rows(0), torch.zeros(30, 7))
    assert net.weight_fisher.factor.sum() > 0.1


def test_the_layers_are_named_once_and_what_to_do():
    net = absorb(network(), *(rows(seed) for seed in range(5)))
    net(rows(5, 1e4))
    with pytest.warns(SngdWarning, match=r"2 weights, 0\.weight, 2\.weight: .*Look for the batch"):
        sngd.refresh_(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in (4, 5):
            net(rows(seed))
            sngd.refresh_(net)
        net(rows(6, 1e4))
        sngd.refresh_(net)


def test_a_resumed_run_remembers_that_the_last_mean_was_an_outlier():
    net = absorb(network(), *(rows(seed) for seed in range(5)), rows(5, 1e4))
    resumed = network()
    resumed.load_state_dict(copy.deepcopy(net.state_dict()))
    for one in (net, resumed):
        absorb(one, rows(4, 1e4))
    assert torch.equal(net[0].weight_fisher.factor, resumed[0].weight_fisher.factor)
    assert trace(net) > 1e5


def test_gradients_of_one_batch_are_bounded_too():
    net = network(CONFIG.replace(fisher="kronecker", damping_rel_trace=1e-2))
    side = net[0].weight_fisher.output_side
    for seed in range(6):
        net(rows(seed)).square().mean().backward()
        absorb(net)
        sngd.refresh_(net)
    before = side.factor.diagonal().sum()
    (1e5 * net(rows(3)).square().mean()).backward()
    absorb(net)
    sngd.refresh_(net)
    assert before < side.factor.diagonal().sum() < OUTLIER * before


def test_training_goes_on_after_an_outlier():
    def moved(size: float, at: int) -> float:
        torch.manual_seed(0)
        net = network(Config(refresh_every=10, observe_every=5))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9)
        for step in range(120):
            x = rows(step)
            if step == 90:
                start = net[0].weight.detach().clone()
            optimizer.zero_grad()
            y = x[:, :3].argmax(1)
            loss = nn.functional.cross_entropy(net(x * size if step == at else x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        return float((net[0].weight.detach() - start).norm())

    usual = moved(1.0, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SngdWarning)
        for at in (0, 2, 30):
            for size in (1e3, 1e7):
                assert moved(size, at) > 0.1 * usual


@pytest.mark.parametrize("size", [1e3, 1e5, 1e8])
def test_a_young_average_takes_no_more_than_it_can_be_lowered_by_again(size):
    net = absorb(network(), rows(0))
    before = trace(net)
    absorb(net, rows(1, size))
    assert trace(net) < FASTEST * before
    absorb(net, rows(2))
    assert trace(net) < 2 * OUTLIER * before


@pytest.mark.parametrize("fisher", KINDS)
def test_passes_whose_sum_leaves_the_dtype_are_left_out(fisher):
    net = sngd.reconstruct(nn.Linear(7, 5, dtype=torch.float32), CONFIG.replace(fisher=fisher))
    usual = rows(0).float()
    absorb(net, usual)
    before = {name: buffer.clone() for name, buffer in net.weight_fisher.named_buffers()}
    for _ in range(3):
        net(usual / usual.norm() * 1.5e19)  # each squares to 2.25e38, and 3.4e38 is the most
    with pytest.warns(SngdWarning, match=r"weight: 1 forward pass.*too large to square"):
        sngd.refresh_(net)
    for name, buffer in net.weight_fisher.named_buffers():
        assert torch.equal(buffer, before[name]), name
    absorb(net, usual)
    assert net.weight_fisher.factor.isfinite().all()
    assert net.weight_fisher.rows_seen == 60
