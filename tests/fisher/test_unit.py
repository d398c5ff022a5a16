"""`Config(fisher="unit")` gives every output of a layer a local Fisher of its own."""

import copy
import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

import sngd_compile as sngd
from api.observing import copies_and_files_observe_alike, one_graph_observes_alike
from laws import UnitCase, conv_case, every_output_law, linear_case
from laws.units import information
from sngd_compile import Config, SngdWarning
from sngd_compile.fisher.information import INFORMATION

pytestmark = pytest.mark.usefixtures("float64")
UNIT = Config(fisher="unit", max_rows=None)
CASES = [
    UnitCase.of(linear_case(5, 3, (7,)), "relu"),
    UnitCase.of(linear_case(4, 11, (3, 2)), "tanh"),
    UnitCase.of(linear_case(5, 4, (6,), bias=False), "gelu"),
    UnitCase.of(linear_case(1, 3, (5,)), "sigmoid"),
    UnitCase.of(linear_case(3, 2, ()), "silu"),
    UnitCase.of(conv_case(nn.Conv2d, (2, 3), 2, (2, 2, 5, 4), stride=2, padding=1), "elu"),
    UnitCase.of(conv_case(nn.Conv1d, (4, 6), 3, (3, 4, 7), groups=2, bias=False), "relu"),
    UnitCase.of(conv_case(nn.Conv2d, (2, 3), (1, 2), (2, 3, 4)).called("unbatched"), "silu"),
]


@every_output_law(CASES)
def test_laws(laws):
    laws.check()


def bernoulli(probability):
    """Two outcomes: their logarithms as functions of a, and the expectation over them."""
    return lambda a, y: torch.log(probability(a) if y else 1 - probability(a))


def gaussian(mean):
    """A unit-variance Gaussian around f(a), up to a constant."""
    return lambda a, y: -((y - mean(a)) ** 2) / 2


GAUSSIANS = {"relu": F.softplus, "elu": F.elu, "gelu": F.gelu, "silu": F.silu}
COINS = {"sigmoid": torch.sigmoid, "tanh": lambda a: (1 + torch.tanh(a)) / 2}


def score_moment(activation: str, a: Tensor) -> Tensor:
    """Integrate the squared score numerically: over two outcomes, or over a fine grid of y."""
    if activation in COINS:
        probability = COINS[activation]
        scores = [grad(lambda v, y=y: bernoulli(probability)(v, y))(a) for y in (True, False)]
        p = probability(a)
        return p * scores[0] ** 2 + (1 - p) * scores[1] ** 2
    mean = GAUSSIANS[activation]
    noise = torch.linspace(-9, 9, 2001)
    density = (-(noise**2) / 2).exp() / math.sqrt(2 * math.pi)
    outcomes = mean(a).detach() + noise
    scores = vmap(lambda y: grad(lambda v: gaussian(mean)(v, y))(a))(outcomes)
    return torch.trapezoid(density * scores**2, noise)


@pytest.mark.parametrize("activation", sorted(INFORMATION))
def test_nu_is_the_expected_square_of_the_score(activation):
    points = torch.tensor([-6.0, -1.3, -0.75, -0.1, 0.2, 0.9, 2.5, 5.0])
    expected = torch.stack([score_moment(activation, a) for a in points])
    torch.testing.assert_close(INFORMATION[activation](points), expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("activation", sorted(INFORMATION))
def test_nu_is_finite_and_never_negative(activation):
    ends = torch.tensor([0.0, -0.0, 1e-300, -40.0, 40.0, -1e4, 1e4, -1e150, 1e150])
    for dtype in (torch.float64, torch.float32):
        a = ends.clamp(-1e18, 1e18).to(dtype)
        nu = INFORMATION[activation](a)
        assert nu.dtype == dtype
        assert nu.isfinite().all()
        assert (nu >= 0).all()


def mlp() -> nn.Sequential:
    """Two hidden layers of odd sizes."""
    return nn.Sequential(
        nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)
    )


def test_factors_are_those_of_dense_scores_of_every_sample():
    model, x = mlp(), torch.randn(9, 5)
    net = sngd.reconstruct(model, UNIT)
    net(x)
    layers = sngd.fisher_layers(sngd.refresh_(net))
    for name, activation in (("0", "tanh"), ("2", "relu")):
        depth = int(name) + 1
        owned = dict(model[int(name)].named_parameters())

        def unit(parameters, sample, depth=depth, name=name):
            head = model[:depth]
            named = {f"{name}.{key}": value for key, value in parameters.items()}
            return functional_call(head, named, (sample,))

        for j, factor in enumerate(layers[f"{name}.weight"].factor):
            total = torch.zeros_like(factor)
            for sample in x:
                slope = jacrev(lambda p, s=sample, j=j: unit(p, s)[j])(owned)
                parts = [slope["weight"][j], *([slope["bias"][j, None]] if "bias" in slope else [])]
                score = torch.cat(parts)
                nu = score_moment(activation, unit(owned, sample)[j].detach())
                total += nu * torch.outer(score, score)
            torch.testing.assert_close(factor, total / len(x), rtol=1e-6, atol=1e-10)


def test_dropped_rows_keep_their_own_outputs():
    x = torch.randn(7, 3)
    model = nn.Linear(3, 2)
    net = sngd.reconstruct(model, UNIT.replace(max_rows=3, activation="gelu"))
    net(x)
    factor = sngd.fisher_layers(sngd.refresh_(net))["weight"].factor
    rows, nu = F.pad(x, (0, 1), value=1.0), information("gelu", model(x).detach())
    candidates = [
        torch.einsum("nj,nd,ne->jde", nu[[*some]], rows[[*some]], rows[[*some]]) / 3
        for some in combinations(range(7), 3)
    ]
    assert sum(torch.allclose(factor, moment, rtol=1e-10) for moment in candidates) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_numbers_that_are_not_finite_never_reach_a_weight(value):
    net = sngd.reconstruct(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), UNIT)
    good, bad = torch.randn(4, 3), torch.randn(4, 3)
    bad[1, 2] = value
    net(good)
    net(bad)
    with pytest.warns(SngdWarning, match="not finite, or too large"):
        sngd.refresh_(net)
    fisher = sngd.fisher_layers(net)["0.weight"]
    assert fisher.rows_seen == 4
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    nu = information("relu", sngd.fold(net)[0](good).detach())
    rows = F.pad(good, (0, 1), value=1.0)
    expected = torch.einsum("nj,nd,ne->jde", nu, rows, rows) / 4
    torch.testing.assert_close(fisher.factor, expected, rtol=1e-10, atol=1e-12)


def test_statistics_of_bfloat16_are_wider():
    model = nn.Sequential(nn.Linear(5, 4), nn.SiLU()).bfloat16()
    net = sngd.reconstruct(model, UNIT)
    x = torch.randn(8, 5).bfloat16()
    net(x)
    fisher = sngd.fisher_layers(sngd.refresh_(net))["0.weight"]
    assert fisher.factor.dtype == torch.float32
    nu, rows = (
        information("silu", model[0](x).detach().double()),
        F.pad(x.double(), (0, 1), value=1),
    )
    expected = torch.einsum("nj,nd,ne->jde", nu, rows, rows) / 8
    torch.testing.assert_close(fisher.factor.double(), expected, rtol=1e-4, atol=1e-4)
    autocast = sngd.reconstruct(copy.deepcopy(model).float(), UNIT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast(x.float())
    other = sngd.fisher_layers(sngd.refresh_(autocast))["0.weight"].factor
    torch.testing.assert_close(other, fisher.factor, rtol=2e-2, atol=2e-2)


def step(net: nn.Module, seed: int) -> None:
    """Take one step and a refresh."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    net(torch.randn(6, 5)).sin().sum().backward()
    optimizer.step()
    sngd.refresh_(net)


def test_copies_and_files_observe_as_before():
    config = UNIT.replace(observe_every=1)
    copies_and_files_observe_alike(mlp, config, "0.weight", step)


def test_a_compiled_network_observes_in_one_graph():
    one_graph_observes_alike(mlp, UNIT)


def test_a_weight_read_by_others_has_another_kind_and_says_so():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 4)

        def forward(self, x):
            return F.relu(F.linear(x, self.inner.weight, self.inner.bias))

    config = UNIT.replace(activation="relu", early_refreshes=(1,))
    (site,) = sngd.explain(Around(), config).sites
    assert site.kind == "shared"
    assert "its outputs are not observed" in site.note
    net = sngd.reconstruct(Around(), config)
    net(torch.randn(6, 5)).sum().backward()
    assert sngd.fisher_layers(net)["inner.weight"].rows_seen == 6
