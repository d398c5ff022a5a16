"""Each usual mistake leaves a note in the plan of a trained network; a good run leaves none."""

import warnings

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from api import EVERY_STEP, batch, mlp, train
from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.training.diagnosis import damped_share, least_condition

pytestmark = pytest.mark.usefixtures("float64")


def notes(net):
    """The notes of the plan, by weight; those of the layers that are well left out."""
    return {site.name: site.note for site in sngd.explain(net).sites if site.note}


def after(config, steps=5, inputs=batch, model=None):
    """The notes on a network that was trained with one configuration."""
    net = sngd.reconstruct(model or mlp(), config)
    train(net, steps=steps, inputs=inputs)
    return notes(net)


def test_a_good_run_has_no_notes():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    assert notes(net) == {}
    train(net, steps=9)
    assert notes(net) == {}
    assert "notes on" not in str(sngd.explain(net))


def test_too_few_rows():
    """Of the first batch, at the first refresh: 7 rows for the 6 and 5 inputs."""
    found = after(EVERY_STEP, steps=1)
    assert found.keys() == {"0.weight", "2.weight"}
    assert "7 rows seen for 6 directions: too few for a full factor" in found["0.weight"]
    assert after(EVERY_STEP.replace(fisher="diagonal"), steps=1) == {}
    assert after(EVERY_STEP.replace(fisher="sketch", rank=3), steps=1) == {}
    found = after(EVERY_STEP.replace(fisher="sketch", rank=5), steps=1)
    assert "7 rows seen for 5 directions: too few for a sketch" in found["0.weight"]


def test_a_damping_above_the_factor():
    found = after(EVERY_STEP.replace(damping_abs=1e4))
    assert "above the whole factor" in found["0.weight"]
    assert "lower damping_rel_trace (now 0.003) or damping_abs (now 10000)" in found["0.weight"]
    found = after(EVERY_STEP.replace(damping_rel_trace=1.0, fisher="diagonal"))
    assert "above the whole factor" in found["2.weight"]
    assert "damping_abs" not in found["2.weight"]


def almost_constant(step):
    """Inputs that differ from row to row by far less than they are large."""
    return 1e-3 * batch(step) + 1.0


def test_a_damping_that_leaves_one_direction():
    model = nn.Linear(40, 3)
    wide = EVERY_STEP.replace(damping_rel_trace=1e-2)
    found = after(wide, 20, lambda step: 1e-3 * batch(step, width=40) + 1.0, model)
    assert "damping dominates 98% of 41 directions" in found["weight"]
    assert "damping_rel_trace (now 0.01)" in found["weight"]


def test_a_damping_too_small_for_the_inputs():
    found = after(EVERY_STEP.replace(damping_rel_trace=1e-9), inputs=almost_constant)
    assert "condition number of" in found["0.weight"]
    assert "raise damping_rel_trace (now 1e-09)" in found["0.weight"]


def test_roots_that_are_too_old():
    rare = sngd.Config(refresh_every=1000, max_rows=None)
    net = sngd.reconstruct(mlp(), rare)
    optimizer = train(net, steps=260)
    assert notes(net) == {}  # the newest root is of step 61
    train(net, optimizer, steps=31, first=260)
    assert "its root is 230 steps old: lower refresh_every (now 1000)" in notes(net)["0.weight"]
    sngd.refresh_(net)
    assert notes(net) == {}


def test_another_optimizer():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    optimizer = torch.optim.Adam(net.parameters())
    with pytest.warns(sngd.SngdWarning, match="Adam"):
        train(net, optimizer)
    assert "Adam steps it, so descent is not natural: use torch.optim.SGD" in notes(net)["0.weight"]
    del optimizer
    train(net)
    assert notes(net) == {}


def test_an_output_side_that_saw_no_gradient():
    net = sngd.reconstruct(mlp(), EVERY_STEP.replace(fisher="kronecker"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.03)
    net(batch())
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step()
    assert "no output gradient observed in 1 steps" in notes(net)["0.weight"]


def test_a_compiled_model_has_notes_too():
    torch._dynamo.reset()
    model = mlp()
    config = {"refresh_every": 2, "early_refreshes": (1,), "observe_every": 1, "damping_abs": 1e4}
    config |= {"max_rows": None, "inner_backend": "eager"}
    net = torch.compile(model, backend="sngd", options=config)
    train(net, torch.optim.SGD(model.parameters(), lr=0.03))
    assert "above the whole factor" in notes(net)["0.weight"]
    torch._dynamo.reset()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("root", ["cholesky", "symmetric"])
def test_what_is_read_off_the_state_is_what_the_eigenvalues_say(groups, root):
    config = EVERY_STEP.replace(damping_rel_trace=0.03, root=root)
    net = sngd.reconstruct(nn.Conv1d(4, 6, 2, groups=groups), config)
    train(net, inputs=lambda step: batch(step, 7, 24).view(7, 4, 6))
    (layer,) = sngd.fisher_layers(net).values()
    eigenvalues = torch.linalg.eigvalsh(layer.factor * layer.scale)
    damped = eigenvalues + layer.damping
    assert damped_share(layer) == pytest.approx((layer.damping / damped).mean().item(), rel=1e-9)
    bound = kind_of(layer.spec).largest_eigenvalue(layer.factor * layer.scale)
    assert (bound >= eigenvalues.amax(-1)).all()
    condition = (damped.amax(-1) / damped.amin(-1)).max().item()
    assert 0.05 * condition < least_condition(layer) <= condition * (1 + 1e-9)


class OwnOptimizer:
    """No `torch.optim.Optimizer`, so that no hook sees its steps."""

    def __init__(self, parameters):
        self.parameters = list(parameters)

    def step(self):
        with torch.no_grad():
            for parameter in self.parameters:
                parameter -= 0.01 * parameter.grad


def write_data(net):
    for parameter in net.parameters():
        parameter.data -= 0.01 * parameter.grad


@pytest.mark.parametrize("step", [write_data, lambda net: OwnOptimizer(net.parameters()).step()])
def test_updates_that_nothing_counts(step):
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    for index in range(3):
        net.zero_grad()
        net(batch(index)).square().mean().backward()
        step(net)
    assert notes(net).keys() == {"0.weight", "2.weight"}
    assert all("no optimizer of torch.optim has stepped it" in text for text in notes(net).values())
    sngd.refresh_(net)
    assert notes(net) == {}  # who renews roots himself needs no word


def test_what_is_no_update_by_hand():
    """Weights that are loaded, moved or filled before the first step of an optimizer."""
    other = mlp()
    for change in (
        lambda net: net.load_state_dict(other.state_dict()),
        lambda net: net.load_state_dict(sngd.reconstruct(other).state_dict()),
        lambda net: net.float().double(),
        lambda net: nn.init.ones_(net[0].weight),
        lambda net: net[0].reset_parameters(),
    ):
        net = sngd.reconstruct(mlp(), EVERY_STEP)
        change(net)
        net(batch().to(net[0].weight.dtype)).sum().backward()
        assert notes(net) == {}
