"""Races are fair: the same batches and weights for all, the same budget, measured off the clock."""

import itertools
import math

import pytest
import torch
from torch import nn

from benchmarks_tiny import DATA, TINY
from contenders import (
    ADAMW,
    BUILT_IN,
    REFERENCE,
    SNGD,
    Contender,
    Recipe,
    Trainee,
    plain_sgd,
)
from peers import PEERS, stay_in_trust_region
from study import race as racing
from study.protocol import Protocol, crossing, goal_of, spread, study
from study.race import Budget, Judge, Point, begin, race


class Clock:
    """A clock that only steps move."""

    def __init__(self) -> None:
        self.now = 0.0

    def process_time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(racing, "time", clock)
    return clock


def timed(name: str, clock: Clock, seconds: float, log: list) -> Contender:
    """SGD whose steps last some seconds and are written down, with their batches."""

    def prepare(model: nn.Module, recipe: Recipe) -> Trainee:
        trainee = plain_sgd(model, recipe)

        def step(inputs, targets):
            log.append((name, inputs, targets))
            clock.now += seconds
            return trainee.step(inputs, targets)

        return Trainee(model, step)

    return Contender(name, prepare, (0.1, 0.01))


def test_all_see_the_same_batches_and_share_the_time(clock):
    log = []
    fast, slow = timed("fast", clock, 1.0, log), timed("slow", clock, 3.0, log)
    runs = race([(fast, 0.1), (slow, 0.01)], TINY, DATA, 1, Budget(12, "seconds", points=4))
    assert [(run.steps, run.seconds) for run in runs] == [(12, 12), (4, 12)]
    seen = {name: [row[1:] for row in log if row[0] == name] for name in ("fast", "slow")}
    for (inputs, labels), (others, other_labels) in zip(seen["fast"], seen["slow"], strict=False):
        assert torch.equal(inputs, others)
        assert torch.equal(labels, other_labels)
    used = {"fast": 0.0, "slow": 0.0}
    for name, *_ in log:
        used[name] += {"fast": 1, "slow": 3}[name]
        assert abs(used["fast"] - used["slow"]) <= 3
    assert [point.seconds for point in runs[0].points] == [0, 3, 6, 9, 12]


def test_batches_are_those_of_the_seed_and_epochs_differ():
    first, again, other = (
        list(itertools.islice(TINY.batches(DATA, seed), 6)) for seed in (1, 1, 2)
    )
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    assert len(torch.cat([inputs for inputs, _ in first[:3]]).unique(dim=0)) == 48
    assert not torch.equal(first[0][0], first[3][0])


@pytest.mark.parametrize("contender", BUILT_IN, ids=lambda contender: contender.name)
def test_measuring_changes_nothing_and_is_off_the_clock(contender):
    run = begin(contender, contender.rates[0], TINY, DATA, seed=1)
    start = TINY.loss(TINY.model(1), DATA.train)
    judge = Judge(TINY, DATA)
    judge.measure(run)
    assert run.points == [Point(0, 0.0, pytest.approx(start, rel=1e-5))]
    run.step()
    before = {name: value.clone() for name, value in run.trainee.network.state_dict().items()}
    seconds = run.seconds
    judge.finish(run)
    assert run.seconds == seconds > 0
    assert run.trainee.network.training
    torch.testing.assert_close(run.trainee.network.state_dict(), before, rtol=0, atol=0)
    assert run.points[-1].loss != run.points[0].loss
    assert run.score in [pytest.approx(right / 20) for right in range(21)]


def diverging(model: nn.Module, recipe: Recipe) -> Trainee:
    def step(inputs, targets):
        with torch.no_grad():
            next(model.parameters()).fill_(math.nan)
        return torch.tensor(math.nan)

    return Trainee(model, step)


def raising(model: nn.Module, recipe: Recipe) -> Trainee:
    def step(inputs, targets):
        raise NotImplementedError

    return Trainee(model, step)


def test_who_fails_drops_out_and_says_why():
    bad = Contender("diverging", diverging, (0.1,)), Contender("raising", raising, (0.1,), "torch")
    protocol = Protocol((ADAMW, *bad), 1, 2, Budget(10, "steps"), ADAMW)
    outcomes = study(protocol, TINY, DATA, lambda text: None).outcomes
    assert [each.tuned.failure for each in outcomes] == [
        None,
        "diverges",
        "fails: NotImplementedError",
    ]
    assert [len(each.runs) for each in outcomes] == [2, 0, 0]
    own = Contender("a fault of our own", raising, (0.1,))
    with pytest.raises(NotImplementedError):
        race([(own, 0.1)], TINY, DATA, 0, Budget(10, "steps"))


def test_study_tries_as_many_rates_of_each_and_takes_the_best():
    protocol = Protocol((REFERENCE, ADAMW, SNGD), 3, 2, Budget(30, "steps"), REFERENCE)
    done = study(protocol, TINY, DATA, lambda text: None)
    for outcome in done.outcomes:
        losses = outcome.tuned.losses
        assert tuple(losses) == outcome.tuned.contender.rates[:3]
        assert losses[outcome.tuned.best] == min(losses.values())
        assert [run.rate for run in outcome.runs] == [outcome.tuned.best] * 2
        assert [run.seed for run in outcome.runs] == [1, 2]
        assert [run.steps for run in outcome.runs] == [30, 30]
    for run in done.outcomes[0].runs:
        half, whole = (crossing(run, goal) for goal in done.goals)
        assert 0 < half.steps <= 15
        assert half.steps <= whole.steps <= 30


def test_every_contender_has_as_many_rates_apart_by_two_to_about_three():
    for contender in (*BUILT_IN, *PEERS):
        rates = sorted(contender.rates)
        assert len(rates) == 4
        for lower, higher in itertools.pairwise(rates):
            assert 2 <= round(higher / lower, 6) <= 10 / 3 + 1e-3


def run_with(losses: list[float]):
    run = begin(REFERENCE, 0.1, TINY, DATA, 0)
    run.points = [Point(10 * number, number / 2, loss) for number, loss in enumerate(losses)]
    return run


def test_goals_are_what_the_reference_reaches_in_a_part_of_the_budget_on_every_seed():
    runs = [run_with([3.0, 1.5, 2.0, 0.1, 0.1]), run_with([3.0, 2.0, 1.0, 0.5, 0.2])]
    assert [goal_of(runs, "steps", end) for end in (10, 20, math.inf)] == [2.0, 1.5, 0.2]
    assert goal_of(runs, "seconds", 0.5) == 2.0


def test_crossing_lies_between_two_measurements():
    assert crossing(run_with([3.0, 2.0, 1.0]), 1.75) == Point(12.5, 0.625, 1.75)
    assert crossing(run_with([3.0, 2.0]), 1.0) is None
    assert crossing(run_with([3.0, 2.0]), 4.0) == Point(0, 0.0, 3.0)


def test_spread_says_how_many_are_missing():
    assert spread([3.0, 1.0, 2.0], ".1f") == "2.0 (1.0 to 3.0)"
    assert spread([3.0, None], ".1f") == "reached by 1 of 2"
    assert spread([None], ".1f") == "not reached"


@pytest.mark.parametrize(("scale", "expected"), [(1.0, [0.8, 0.0, 0.6]), (0.01, [0.04, 0, 0.03])])
def test_trust_region_bounds_the_fisher_norm_and_leaves_short_steps_alone(scale, expected):
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    gradients = [torch.tensor([4.0, 0.0]), torch.tensor([3.0])]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = scale * gradient
    # The norm is the root of the natural gradient times the plain one: 5 and 0.5.
    stay_in_trust_region(parameters, gradients)
    got = torch.cat([parameter.grad for parameter in parameters])
    torch.testing.assert_close(got, torch.tensor(expected))
