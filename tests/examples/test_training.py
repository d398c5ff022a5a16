"""Every method starts from the same weights and batches, and is measured off the clock."""

import math

import pytest
import torch
from rich.console import Console

from data import Name, load
from report import common_goal, summarise, table
from training import METHODS, Point, Run, batches, mlp, start


@pytest.fixture(scope="module")
def digits():
    return load(Name.DIGITS)


def test_every_method_starts_at_the_same_function(digits):
    runs = [start(method, method.rates[0], digits, seed=3) for method in METHODS]
    with torch.no_grad():
        outputs = [run.network(digits.test_inputs) for run in runs]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])
    other = mlp(64, seed=4)(digits.test_inputs)
    assert not torch.allclose(other, outputs[0])


def test_every_method_tries_the_same_number_of_rates():
    assert len({len(method.rates) for method in METHODS}) == 1


def test_batches_are_those_of_the_seed_and_see_every_example_once_an_epoch(digits):
    first, again, other = (
        torch.cat([inputs for inputs, _ in batches(digits, 100, 1, seed)]) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique(dim=0)) == 1400


def test_every_epoch_has_an_order_of_its_own(digits):
    labels = torch.cat([labels for _, labels in batches(digits, 100, 2, seed=1)])
    assert not torch.equal(labels[:1400], labels[1400:])


def test_step_is_the_optimizers_and_is_timed(digits):
    run = start(METHODS[0], 0.1, digits, seed=0)
    expected = mlp(64, seed=0)
    inputs, labels = digits.train_inputs[:10], digits.train_labels[:10]
    loss = torch.nn.functional.cross_entropy(expected(inputs), labels)
    gradient = torch.autograd.grad(loss, expected[0].weight)[0]
    run.step(inputs, labels)
    torch.testing.assert_close(run.network[0].weight, expected[0].weight - 0.1 * gradient)
    assert run.steps == 1
    assert run.seconds > 0


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_measuring_changes_nothing_and_is_off_the_clock(method, digits):
    run = start(method, method.rates[0], digits, seed=0)
    run.step(digits.train_inputs[:64], digits.train_labels[:64])
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    seconds = run.seconds
    run.measure(digits)
    assert run.seconds == seconds
    torch.testing.assert_close(run.network.state_dict(), before, rtol=0, atol=0)
    assert run.points[0].step == 1
    with torch.no_grad():
        outputs = run.network(digits.train_inputs)
    loss = torch.nn.functional.cross_entropy(outputs, digits.train_labels)
    assert run.points[0].training_loss == pytest.approx(loss.item(), rel=1e-4)


def run_with(losses: list[float]) -> Run:
    """A run that was measured after every step, a step taking half a second."""
    points = [Point(step, loss, 1 - loss / 4) for step, loss in enumerate(losses)]
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters())
    steps = len(losses) - 1
    return Run(METHODS[0], 0.1, network, optimizer, steps, steps / 2, points)


def test_common_goal_is_the_lowest_loss_that_all_reach():
    assert common_goal([run_with([3.0, 1.0, 2.0]), run_with([3.0, 0.5])]) == 1.0


def test_diverged_run_has_no_say_in_the_goal():
    diverged = run_with([2.0, math.nan])
    assert diverged.loss == math.inf
    assert common_goal([run_with([3.0, 1.5]), diverged]) == 1.5


def test_table_shows_where_each_run_reached_the_goal_and_who_did_not():
    results = [summarise(run_with(losses), 1.5) for losses in ([3.0, 1.25, 1.0], [3.0, 2.0, 2.5])]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table(results, 1.5, "title"))
    rows = [line.split("│")[1:-1] for line in capture.get().splitlines() if "│" in line]
    shown = {name.strip(): (one.strip(), two.strip()) for name, one, two in rows}
    assert shown["steps until the training loss is 1.5"] == ("1", "not reached")
    assert shown["seconds until the training loss is 1.5"] == ("0.50", "not reached")
    assert shown["test accuracy at that point"] == ("68.8%", "not reached")
    assert shown["training loss at the end"] == ("1", "2.5")
    assert shown["milliseconds a step, mean"] == ("500.00", "500.00")
