"""A limit on rows draws a random subset without replacement, by its own seed."""

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config

pytestmark = pytest.mark.usefixtures("float64")
ROWS = 11


def drawn(seed: int, steps: int = 1) -> Tensor:
    """Observe one-hot rows, four of eleven each step; return the diagonal of the sum."""
    config = Config(observe_every=1, early_refreshes=(), max_rows=4, seed=seed)
    net = sngd.reconstruct(nn.Linear(ROWS, 2, bias=False), config)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(steps):
        net(torch.eye(ROWS)).sum().backward()
        optimizer.step()
    fisher = sngd.fisher_layers(sngd.refresh_(net))["weight"]
    assert fisher.rows_seen == 4 * steps
    return (fisher.factor * fisher.rows_seen).diagonal()


@pytest.mark.parametrize("seed", range(7))
def test_rows_are_drawn_without_replacement(seed):
    counts = drawn(seed).sort().values
    torch.testing.assert_close(counts, torch.tensor([0.0] * 7 + [1.0] * 4))


def test_the_draw_depends_on_the_seed_and_on_the_step_alone():
    torch.testing.assert_close(drawn(seed=3), drawn(seed=3))
    assert not torch.allclose(drawn(seed=3), drawn(seed=30))
    assert drawn(seed=0, steps=6).count_nonzero() > 4


def test_the_global_generator_is_left_alone():
    model, inputs = nn.Linear(3, 2), torch.ones(5, 3)
    before = torch.get_rng_state()
    sngd.reconstruct(model, Config(max_rows=2))(inputs)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("images", "limit", "observed"), [(40, 10, 16), (40, 170, 19), (9, 1, 9)])
def test_a_convolution_draws_whole_images_and_at_least_sixteen(images, limit, observed):
    net = sngd.reconstruct(nn.Conv1d(2, 3, 3), Config(max_rows=limit))
    net(torch.randn(images, 2, 11))
    assert sngd.fisher_layers(net)["weight"].rows_seen == 9 * observed
