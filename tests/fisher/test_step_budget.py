"""`Config.step_budget`: where a layer sees few rows, the root of its sketch has fewer columns."""

import copy
import math

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from api import EVERY_STEP, apart, train
from sngd_compile import Config, ConfigError
from sngd_compile.fisher.roots.sketch import SketchRoot

pytestmark = pytest.mark.usefixtures("float64")

WIDTH = 61
SKETCH = EVERY_STEP.replace(fisher="sketch", rank=20, step_budget=0.25)


def rows(step: int = 0, count: int = 30) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(count, WIDTH, generator=generator) + 0.3


def observed(count: int, config: Config = SKETCH, outputs: int = 3) -> nn.Module:
    torch.manual_seed(1)
    net = sngd.reconstruct(nn.Linear(WIDTH, outputs), config)
    net(rows(count=count))
    return sngd.refresh_(net)


def root_of(net: nn.Module) -> SketchRoot:
    root = net.weight_fisher.root_buffers
    assert isinstance(root, SketchRoot)
    return root


@pytest.mark.parametrize(
    ("count", "budget", "columns"),
    [
        (30, 0.25, 5),
        (60, 0.25, 10),
        (200, 0.25, 20),
        (30, 0.5, 10),
        (7, 0.01, 3),
        (30, math.inf, 20),
    ],
)
def test_the_columns_are_halved_until_they_fit(count, budget, columns):
    # 4 r multiply-adds for each element of the weight, of the 3 N of the layer; never below 4.
    net = observed(count, SKETCH.replace(step_budget=budget))
    assert root_of(net).columns == columns


def test_what_is_left_out_are_zeros_and_the_metric_is_that_of_the_smaller_rank():
    net, smaller = observed(30), observed(30, EVERY_STEP.replace(fisher="sketch", rank=5))
    root, columns = root_of(net), root_of(net).columns
    assert columns == 5
    assert root.basis.shape == (WIDTH + 1, 20)
    assert not root.basis[:, columns:].any()
    torch.testing.assert_close(net.weight_fisher.metric(), smaller.weight_fisher.metric())
    for map_name in ("fold", "unfold", "to_prime", "from_prime"):
        weight, bias = torch.randn(3, WIDTH), torch.randn(3)
        short = getattr(root, map_name)(weight, bias)
        root.note_columns(20)
        torch.testing.assert_close(short, getattr(root, map_name)(weight, bias))
        root.note_columns(columns)


def test_more_outputs_than_rows_are_worth_more_columns_but_to_a_convolution():
    # A product applies the root to its rows, if they are fewer; a convolution always to the weight.
    assert root_of(observed(30, outputs=60)).columns == 10
    net = sngd.reconstruct(nn.Conv2d(5, 60, 3), SKETCH)
    net(torch.randn(30, 5, 3, 3))
    assert root_of(sngd.refresh_(net)).columns == 5


def test_groups_have_as_many_columns_as_their_rows_allow():
    net = sngd.reconstruct(nn.Conv1d(16, 4, 3, groups=2), SKETCH)
    before = net(inputs := torch.randn(30, 16, 3))
    sngd.refresh_(net)
    assert root_of(net).columns == 5
    torch.testing.assert_close(net(inputs), before)


def test_ranks_that_change_keep_the_function_and_the_velocity():
    torch.manual_seed(0)
    net = sngd.reconstruct(nn.Linear(WIDTH, 3), SKETCH.replace(refresh_every=1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    seen = set()
    for step, count in enumerate((8, 8, 300, 300, 300)):
        train(net, optimizer, steps=1, first=step, inputs=lambda s, n=count: rows(s, n))
        seen.add(root_of(net).columns)
        before, plain = net(rows(99)), sngd.fold(net)
        torch.testing.assert_close(plain(rows(99)), before)
        sngd.refresh_(net)
        torch.testing.assert_close(net(rows(99)), before)
    assert len(seen) > 1


def test_a_root_that_somebody_writes_to_is_taken_in_full():
    net, other = observed(30), observed(400)
    assert (root_of(net).columns, root_of(other).columns) == (5, 20)
    with torch.no_grad():
        for buffer, theirs in zip(root_of(net).buffers(), root_of(other).buffers(), strict=True):
            buffer.copy_(theirs)
    assert root_of(net).columns == 20
    given = torch.randn(3, WIDTH), torch.randn(3)
    torch.testing.assert_close(root_of(net).fold(*given), root_of(other).fold(*given))


def test_a_file_holds_every_rank_and_a_resumed_run_goes_on_alike():
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, 3)
    net = sngd.reconstruct(model, SKETCH)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    train(net, optimizer, steps=3, inputs=rows)
    assert root_of(net).columns == 5
    resumed = sngd.reconstruct(model, SKETCH)
    resumed.load_state_dict(copy.deepcopy(net.state_dict()))
    assert root_of(resumed).columns == 5
    other = torch.optim.SGD(resumed.parameters(), lr=0.01, momentum=0.9)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for some, theirs in ((net, optimizer), (resumed, other)):
        train(some, theirs, steps=4, first=3, inputs=rows)
    assert apart(net, resumed, rows(99)) == 0.0
    assert apart(net, copy.deepcopy(net), rows(99)) == 0.0


def test_the_report_says_what_the_root_has():
    net = observed(30)
    report = sngd.explain(net)
    assert "sketch 62 of rank 20, 5 in its root" in str(report)
    assert report.work_per_step == pytest.approx(4 * 5 / (3 * 30))
    assert "in its root" not in str(sngd.explain(observed(400)))


@pytest.mark.parametrize("budget", [0, -1.0, math.nan, "much", None, True])
def test_a_budget_is_a_number_above_zero(budget):
    with pytest.raises(ConfigError, match="step_budget"):
        Config(step_budget=budget)
