"""Why a parameter is left as it is: the reason that `explain` prints."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

import sngd_compile as sngd
from api import apart, batch, mlp, train

pytestmark = pytest.mark.usefixtures("float64")


def reasons(model, **arguments):
    return {skip.name: skip.reason for skip in sngd.explain(model, **arguments).skips}


class Functional(nn.Module):
    """Two weights and a bias; `compute` uses them."""

    def __init__(self, compute):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))
        self.other = nn.Parameter(torch.randn(3, 5))
        self.bias = nn.Parameter(torch.randn(3))
        self.register_buffer("mask", torch.ones(3, 5))
        self.compute = compute

    def forward(self, x):
        return self.compute(self, x)


LONE_BIAS = "a bias that joins no local Fisher"
CALLS = {
    "masked": (
        lambda m, x: F.linear(x, m.weight * m.mask),
        {"weight": "multiplied by no activation"},
    ),
    "power": (
        lambda m, x: x.sum() + (m.weight**2).sum(),
        {"weight": "from it by pow"},
    ),
    "penalised": (
        lambda m, x: F.linear(x, m.weight) + m.weight.square().sum(),
        {"weight": "computed from it by square (test_reasons.py:"},
    ),
    "returned": (lambda m, x: (F.linear(x, m.weight), m.weight), {"weight": "forward returns it"}),
    "detached": (
        lambda m, x: F.linear(x, m.weight.detach()),
        {"weight": "from it by detach"},
    ),
    "data": (lambda m, x: F.linear(x, m.weight.data), {"weight": "computed from it by getattr"}),
    "own input": (
        lambda m, x: F.linear(m.weight, m.weight) + F.linear(x, m.other).sum(),
        {"weight": "it is the weight and also the input of linear"},
    ),
    "vector": (lambda m, x: F.linear(x[:, :3], m.bias), {"bias": "1 dimensions"}),
    "unused": (lambda m, x: F.linear(x, m.weight), {"other": "does not use it"}),
    "separate bias": (lambda m, x: F.linear(x, m.weight) + m.bias, {"bias": "added to"}),
    "bias of two": (
        lambda m, x: F.linear(x, m.weight, m.bias) + F.linear(x, m.other, m.bias),
        {"bias": LONE_BIAS},
    ),
    "bias of a computed weight": (
        lambda m, x: F.linear(x, 2 * m.weight, m.bias),
        {"bias": "uses it, but not as its weight"},
    ),
    "with and without bias": (
        lambda m, x: F.linear(x, m.weight, m.bias) + F.linear(x, m.weight),
        {"bias": LONE_BIAS},
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_reasons_name_the_call(call):
    compute, expected = CALLS[call]
    model = Functional(compute)
    found = reasons(model)
    assert {name: text for name, text in expected.items() if text not in found[name]} == {}
    net = sngd.reconstruct(model)
    x = batch()
    torch.testing.assert_close(net(x), model(x))


class OneBias(nn.Module):
    """A bias with a single element, which broadcasts."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(1))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


def test_a_broadcast_bias_does_not_join():
    net = sngd.reconstruct(OneBias())
    assert LONE_BIAS in reasons(net)["bias"]
    train(net)
    assert apart(net, sngd.fold(net)) < 1e-12


def test_frozen_parameters():
    model = mlp()
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    found = reasons(model)
    assert found["0.weight"] == found["2.bias"] == "frozen (requires_grad=False)"
    assert LONE_BIAS in found["0.bias"]
    (site,) = sngd.explain(model).sites
    assert site.parameter_names == ["2.weight"]
    net = sngd.reconstruct(model)
    train(net)
    assert torch.equal(net[0].weight, model[0].weight)
    assert torch.equal(net[2].bias, model[2].bias)
    assert not torch.equal(net[0].bias, model[0].bias)
    assert apart(net, sngd.fold(net)) < 1e-12


def test_a_frozen_model_is_left_and_never_traced():
    model = mlp().requires_grad_(False)
    assert set(reasons(model).values()) == {"frozen (requires_grad=False)"}
    assert sngd.graph(sngd.reconstruct(model)) == {}


def test_tied_parameters_name_each_other():
    model = mlp()
    model.extra = nn.Linear(5, 4)
    model.extra.weight = model[0].weight
    (site,) = [site for site in sngd.explain(model).sites if site.name == "0.weight"]
    assert site.parameter_names == ["0.weight", "extra.weight"]
    assert LONE_BIAS in reasons(model)["0.bias"]
    net = sngd.reconstruct(model)
    layers = sngd.fisher_layers(net)
    assert layers["0.weight"] is layers["extra.weight"]
    assert net.extra.weight_prime is net[0].weight_prime


def test_lazy_parameters_say_what_to_do():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    assert reasons(model)["0.weight"].startswith("not initialised yet")
    net = sngd.reconstruct(model)
    assert net(batch()).shape == (7, 2)
    assert [site.name for site in sngd.explain(net).sites] == ["1.weight"]


def test_children_that_are_counted():
    class Numbered(nn.Sequential):
        """A Sequential with a weight of its own."""

        def __init__(self):
            super().__init__(nn.Tanh(), nn.Linear(5, 5))
            self.weight = nn.Parameter(torch.randn(3, 5))

        def forward(self, x):
            return F.linear(super().forward(x), self.weight)

    model = Numbered()
    assert "whose length a Fisher layer would change: hold" in reasons(model)["weight"]
    net = sngd.reconstruct(model)
    assert (len(net), net[-1]) == (2, net[1])
    assert apart(net, model) == 0.0


class Cloned(nn.Linear):
    """Copies itself in its own way."""

    def __deepcopy__(self, memo):
        clone = type(self)(self.in_features, self.out_features)
        clone.load_state_dict(self.state_dict())
        return clone


class Recipe(nn.Linear):
    """Pickles itself in its own way."""

    def __reduce__(self):
        return nn.Linear, (self.in_features, self.out_features), self.__dict__


@pytest.mark.parametrize("layer_class", [Cloned, Recipe])
def test_classes_with_their_own_copying_are_left(layer_class):
    model = nn.Sequential(layer_class(5, 4), nn.Linear(4, 3))
    text = f"{layer_class.__name__} defines how it is copied or pickled, which may lose a Fisher"
    assert {name: why[: len(text)] for name, why in reasons(model).items()} == {
        "0.weight": text,
        "0.bias": text,
    }
    net = sngd.reconstruct(model)
    train(net)
    assert apart(net, sngd.fold(net)) < 1e-12


def test_a_reason_names_the_line():
    model = Functional(lambda m, x: torch.cdist(x, m.weight))
    line = test_a_reason_names_the_line.__code__.co_firstlineno + 1
    assert (
        f"no rule for cdist (test_reasons.py:{line}); it trains by plain gradient descent"
        in reasons(model)["weight"]
    )


class Doubled(nn.Module):
    """A parametrization of a user's own."""

    def forward(self, weight):
        return 2 * weight


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("norm", "computing"),
    [
        (nn.utils.parametrizations.weight_norm, "weight_norm"),
        (nn.utils.weight_norm, "weight_norm"),
        (lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()), "Doubled"),
    ],
)
def test_a_weight_that_is_computed_before_its_layer_says_by_what(norm, computing):
    found = reasons(nn.Sequential(norm(nn.Conv1d(3, 4, 3)), nn.Conv1d(4, 4, 3)))
    assert found
    text = f"{computing} computes the weight of its layer from it: only a weight that a layer uses"
    left = [why for name, why in found.items() if not name.endswith("bias")]
    assert [why[: len(text)] for why in left] == [text] * len(left)


class Unobserved(nn.Module):
    """A forward with a branch, which uses its weight in a way that has no rule."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 5))

    def forward(self, x):
        if float(x.detach().sum()) > 1e9:
            return x
        return x + self.weight[self.weight > 0].sum()


@pytest.mark.parametrize("count", [2, 9])
def test_layers_with_one_problem_share_one_warning(count):
    net = sngd.reconstruct(nn.Sequential(*[Unobserved() for _ in range(count)]))
    with pytest.warns(sngd.SngdWarning) as caught:
        train(net)
    (text,) = [str(warning.message) for warning in caught]
    named = ", ".join(f"{i}.weight" for i in range(min(count, 6)))
    rest = " and 3 more" if count == 9 else ""
    assert text.startswith(f"{count} weights, {named}{rest}: no input has been observed")
    assert "plain gradient descent" in text
