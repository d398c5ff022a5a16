"""The exact Fisher against closed forms and sums over labels written by hand, in float64."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from contenders import Recipe
from paper import exact_comparison
from paper.exact_natural import (
    DAMPING_REL_TRACE,
    DECAY,
    exact_natural_gradient,
    fisher,
    natural,
)


def inputs_and_labels(examples: int, features: int, classes: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, features, generator=generator, dtype=torch.float64)
    return inputs, inputs[:, :classes].argmax(1)


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()


def flat_gradient(model: nn.Module, value: torch.Tensor) -> torch.Tensor:
    gradients = torch.autograd.grad(value, tuple(model.parameters()), retain_graph=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def flat_weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_fisher_of_softmax_regression_has_its_closed_form():
    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    inputs, _ = inputs_and_labels(7, 3, 3)
    p = model(inputs).softmax(1).detach()
    of_logits = p.diag_embed() - p[:, :, None] * p[:, None, :]
    with_one = torch.cat([inputs, torch.ones(7, 1, dtype=torch.float64)], 1)
    # Indices (class, feature); parameters come as all weights, class by class, then all biases.
    expected = torch.einsum("nab,ni,nj->aibj", of_logits, with_one, with_one) / 7
    order = [4 * c + i for c in range(4) for i in range(3)] + [4 * c + 3 for c in range(4)]
    expected = expected.reshape(16, 16)[order][:, order]
    torch.testing.assert_close(fisher(model, inputs), expected, rtol=1e-12, atol=1e-14)


def test_fisher_is_the_expected_outer_product_of_the_score():
    model = two_layers()
    inputs, _ = inputs_and_labels(5, 4, 3)
    expected = torch.zeros(27, 27, dtype=torch.float64)
    for example in inputs:
        logarithms = model(example[None]).log_softmax(1)[0]
        for logarithm in logarithms:
            score = flat_gradient(model, logarithm)
            expected += logarithm.detach().exp() * torch.outer(score, score) / 5
    torch.testing.assert_close(fisher(model, inputs), expected, rtol=1e-12, atol=1e-14)


def test_damping_is_a_fraction_of_the_trace():
    matrix = torch.diag(torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64))
    gradient = torch.ones(3, dtype=torch.float64)
    expected = 1 / torch.tensor([3.4, 1.4, 0.4], dtype=torch.float64)
    torch.testing.assert_close(natural(matrix, gradient, 0.1), expected)
    torch.testing.assert_close(natural(10 * matrix, gradient, 0.1), expected / 10)


def by_hand(model: nn.Module, batches, rate: float) -> list[float]:
    """Steps as the docstring has them, on one flat vector; the Fisher norms before clipping."""
    velocity, average, norms = 0.0, 0.0, []
    for number, (inputs, labels) in enumerate(batches, 1):
        gradient = flat_gradient(model, F.cross_entropy(model(inputs), labels))
        average = DECAY * average + (1 - DECAY) * fisher(model, inputs)
        metric = average / (1 - DECAY**number)
        metric = metric + DAMPING_REL_TRACE * metric.trace() * torch.eye(len(metric)).double()
        step = torch.linalg.solve(metric, gradient)
        norms.append((gradient @ step).sqrt().item())
        velocity = 0.9 * velocity + step / max(1, norms[-1])
        new = flat_weights(model) - rate * velocity
        nn.utils.vector_to_parameters(new, model.parameters())
    return norms


def test_steps_are_those_written_by_hand_on_both_sides_of_the_trust_region():
    batches = [inputs_and_labels(30, 4, 3, seed) for seed in range(40)]
    model, expected = two_layers(), two_layers()
    norms = by_hand(expected, batches, rate=0.1)
    assert min(norms) < 1 < max(norms)
    trainee = exact_natural_gradient(model, Recipe(0.1))
    for inputs, labels in batches:
        trainee.step(inputs, labels)
    torch.testing.assert_close(flat_weights(model), flat_weights(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("thread_count")
def test_comparison_from_end_to_end(tmp_path):
    options = ["--steps", "16", "--seeds", "2", "--rates", "1", "--output", str(tmp_path)]
    done = CliRunner().invoke(exact_comparison.app, options)
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "exact.json").read_text())
    assert (content["unit"], content["limit"], content["seeds"]) == ("steps", 16, 2)
    results = {result["contender"]: result for result in content["contenders"]}
    assert list(results) == ["SGD", "SNGD", "exact NGD"]
    for result in results.values():
        assert [run["steps"] for run in result["runs"]] == [16, 16]
        assert [len(run["points"]) for run in result["runs"]] == [17, 17]
    # Where SGD has just reached the goal, the exact method has passed it.
    for sgd, exact in zip(results["SGD"]["runs"], results["exact NGD"]["runs"], strict=True):
        assert exact["goals"][0]["steps"] < sgd["goals"][0]["steps"] <= 8
        assert exact["points"][0][2] == sgd["points"][0][2]
    assert "exact NGD" in (tmp_path / "exact.md").read_text()
    assert (tmp_path / "exact.png").read_bytes().startswith(b"\x89PNG")
