"""Tasks whose loss or metric is of their own: an equation with a known solution, and a table."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import poisson
import tabular
from contenders import BUILT_IN, FULL_BATCH, MUON_WITH_HEAD
from peers import PEERS
from study.convergence import TASKS
from study.race import Budget, race

BY_NAME = {task.name: task for task in TASKS}
PINN, TABULAR = BY_NAME["pinn"], BY_NAME["tabular"]


class Solved(nn.Module):
    """The solution in the place of a network."""

    def forward(self, points):
        return poisson.solution(points)


@torch.no_grad()
def test_the_solution_solves_the_equation():
    (inputs, targets), test = poisson.examples()
    loss = poisson.equation(Solved(), inputs.double(), targets.double())
    assert loss < 1e-10
    assert poisson.relative_error(Solved(), test) == 0.0
    away = nn.Sequential(Solved(), nn.Linear(1, 1))
    nn.init.constant_(away[1].weight, 1.1)
    nn.init.zeros_(away[1].bias)
    assert poisson.relative_error(away, test) == pytest.approx(0.1, rel=1e-5)


def test_half_of_the_points_are_inside_and_half_on_all_sides_of_the_border():
    (inputs, targets), _ = poisson.examples()
    inside, border = inputs.split(2, dim=1)
    assert ((inside > 0) & (inside < 1)).all()
    assert ((border == 0) | (border == 1)).any(1).all()
    sides = {
        (axis, value)
        for axis in (0, 1)
        for value in (0.0, 1.0)
        if (border[:, axis] == value).sum() > 100
    }
    assert len(sides) == 4
    assert targets.shape == (poisson.POINTS, 2)


def test_the_table_is_standardised_and_has_heavy_tails():
    (inputs, targets), (test, _) = tabular.examples()
    assert inputs.shape == (tabular.ROWS, tabular.COLUMNS)
    assert test.shape == (tabular.TEST_ROWS, tabular.COLUMNS)
    for part in (inputs, targets):
        torch.testing.assert_close(part.mean(0), torch.zeros(part.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(part.std(0), torch.ones(part.shape[1]), atol=1e-4, rtol=0)
    assert inputs[:, 4 : 4 + tabular.TAILED].amax(0).min() > 2.5 > inputs[:, :4].max()


def test_what_is_explained_of_the_mean_is_nothing():
    examples = torch.zeros(4, 2), torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    mean = nn.Linear(2, 1)
    nn.init.constant_(mean.bias, 2.5)
    with torch.no_grad():
        assert tabular.explained(mean, examples) == pytest.approx(0.0)


def test_who_needs_the_outputs_or_all_examples_takes_part_where_that_is_so():
    for task, left_out in (
        (PINN, {"K-FAC (asdfghjkl)", "K-FAC (curvlinops)"}),
        (TABULAR, {"L-BFGS"}),
    ):
        data = task.load()
        everyone = (*BUILT_IN, MUON_WITH_HEAD, FULL_BATCH, *PEERS)
        assert {c.name for c in everyone if not task.can_have(c, data)} == left_out


@pytest.mark.parametrize("task", [PINN, TABULAR], ids=lambda task: task.name)
def test_every_contender_of_torch_trains_it(task):
    task, data = replace(task, measured=100), task.load()
    entries = [
        (c, min(c.rates)) for c in (*BUILT_IN, MUON_WITH_HEAD, FULL_BATCH) if task.can_have(c, data)
    ]
    for run in race(entries, task, data, 0, Budget(6, "steps", points=2)):
        assert run.failure is None
        assert run.points[-1].loss < run.points[0].loss, run.contender.name
