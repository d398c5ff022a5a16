"""Which activation follows a layer, what the plan says of it, and where "shared" is kept."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config

UNIT = Config(fisher="unit")


class Applied(nn.Module):
    """Two layers whose outputs are passed to functions."""

    def __init__(self, first, second):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """Apply one after the other."""
        return self.second(self.two(self.first(self.one(x))))


class Skip(nn.Module):
    """A layer whose output is read twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the activation left out."""
        hidden = self.layer(x)
        return hidden + torch.tanh(hidden)


class Twice(nn.Module):
    """A layer in front of two different activations."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        return F.silu(self.layer(torch.tanh(self.layer(x))))


class Branching(nn.Module):
    """A forward that nobody captures, around a block that is captured."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(3, 3), nn.ELU(), nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Branch on a number."""
        return F.relu(self.block(x)) if x.sum() > 0 else self.block(x)


class Leaky(nn.ReLU):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        """Leak."""
        return F.leaky_relu(x)


class Own(nn.Module):
    """A parameter of its own and a method in place."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return F.linear(x, self.kernel).relu_()


def plan_of(model: nn.Module, config: Config = UNIT) -> dict[str, tuple[str, str]]:
    """Return activation and note of every site, after reconstruction the same as before."""
    plan = sngd.explain(model, config)
    assert str(sngd.explain(sngd.reconstruct(model, config))) == str(plan)
    assert all((site.kind == "unit") == bool(site.spec.activation) for site in plan.sites)
    return {site.name: (site.spec.activation, site.note) for site in plan.sites}


FUNCTIONS = [
    (F.relu, "relu"),
    (torch.relu, "relu"),
    (lambda x: x.relu(), "relu"),
    (torch.tanh, "tanh"),
    (lambda x: x.sigmoid(), "sigmoid"),
    (F.elu, "elu"),
    (lambda x: F.gelu(x, approximate="tanh"), "gelu"),
    (F.silu, "silu"),
    (nn.ReLU(inplace=True), "relu"),
    (nn.Tanh(), "tanh"),
    (nn.Sigmoid(), "sigmoid"),
    (nn.ELU(), "elu"),
    (nn.GELU(), "gelu"),
    (nn.SiLU(), "silu"),
]


@pytest.mark.parametrize(("function", "activation"), FUNCTIONS)
def test_an_activation_is_found_in_the_forward_around(function, activation):
    found = plan_of(Applied(function, nn.Softplus()))
    assert found["one.weight"][0] == activation
    assert "follows it" in found["one.weight"][1]
    activation, note = found["two.weight"]
    assert activation == ""
    assert 'using "shared": second (Softplus) follows it' in note


def test_it_is_found_in_a_sequence_and_beyond_its_end():
    inner = nn.Sequential(nn.Conv2d(1, 2, 3), nn.SiLU(), nn.Conv2d(2, 4, 1, groups=2))
    model = nn.Sequential(inner, nn.Tanh(), nn.Flatten(), nn.Linear(4, 2))
    found = plan_of(model)
    assert found["0.0.weight"] == ("silu", "its units are silu: 0.1 (SiLU) follows it")
    assert found["0.2.weight"] == ("tanh", "its units are tanh: 1 (Tanh) follows it")
    assert "the model returns its result" in found["3.weight"][1]
    text = str(sngd.explain(model, UNIT))
    for shown in ("unit 2 x 10 ", "unit 4 x 2 ", "shared 5 ", "0.1 (SiLU) follows it"):
        assert shown in text
    layers = sngd.fisher_layers(sngd.reconstruct(model, UNIT))
    for site in sngd.explain(model, UNIT).sites:
        assert sum(b.nbytes for b in layers[site.name].buffers()) == site.state_bytes


NOT_FOUND = [
    (Skip(), "layer", "add follows it in the model's forward"),
    (Twice(), "layer", "silu follows it in the model's forward; tanh follows it"),
    (Branching(), "block.2", "no captured forward shows where its result goes"),
    (nn.Sequential(nn.Linear(3, 2), nn.ELU(0.5)), "0", "has an alpha other than 1"),
    (Applied(lambda x: F.elu(x, 2.0), torch.tanh), "one", "has an alpha other than 1"),
    (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.ReLU()), "0", "1 (BatchNorm1d) follows"),
    (
        nn.Sequential(nn.ConvTranspose1d(3, 2, 2), nn.ReLU()),
        "0",
        "runs as written|rows its out",
    ),
    (nn.Sequential(nn.Linear(3, 2), Leaky()), "0", "1 (Leaky) follows it"),
    (nn.LSTM(3, 4), "weight_ih_l0", "runs as written"),
]


@pytest.mark.parametrize(("model", "name", "reason"), NOT_FOUND)
def test_shared_is_kept_where_none_is_found_and_the_plan_says_why(model, name, reason):
    found = plan_of(model)
    activation, note = found[name if name.startswith("weight") else f"{name}.weight"]
    assert activation == ""
    assert note.startswith('fisher = "unit" is unavailable here; using "shared": ')
    assert any(part in note for part in reason.split("|")), note


def test_what_is_captured_inside_a_forward_that_is_not():
    assert plan_of(Branching())["block.0.weight"][0] == "elu"
    assert plan_of(Own())["kernel"][0] == "relu"


def test_a_shared_module_needs_one_activation_in_all_its_places():
    layer = nn.Linear(3, 3)
    same = nn.Sequential(layer, nn.ReLU(), nn.Sequential(layer, nn.ReLU()))
    assert plan_of(same)["0.weight"][0] == "relu"
    other = nn.Sequential(layer, nn.ReLU(), nn.Sequential(layer, nn.Tanh()))
    assert "1 (ReLU) follows it; 2.1 (Tanh) follows it" in plan_of(other)["0.weight"][1]
    branching = Branching()
    branching.block = layer
    unknown = nn.Sequential(layer, nn.ReLU(), branching)
    assert "no captured forward" in plan_of(unknown)["0.weight"][1]


def test_a_given_activation_is_taken_as_it_is():
    found = plan_of(nn.Linear(3, 2), UNIT.replace(activation="gelu"))
    assert found["weight"] == ("gelu", "its units are gelu: as configured")


def test_factors_above_the_budget_are_shared_and_then_diagonal():
    model = nn.Sequential(nn.Linear(9, 7), nn.ReLU())
    units, shared = (sngd.explain(model, c).state_bytes for c in (UNIT, Config()))
    kinds, notes = [], []
    for budget in (units, units - 1, shared - 1):
        (site,) = sngd.explain(model, UNIT.replace(memory_budget=budget)).sites
        kinds.append(site.kind)
        notes.append(site.note)
    assert kinds == ["unit", "shared", "diagonal"]
    assert "its units are" in notes[0]
    assert "its units are" not in notes[1]
    assert "unit 7 x 10 (8.0 KiB) gave way to shared 10 (1.2 KiB)" in notes[1]
    assert f"memory_budget = {units - 1:,}" in notes[1]


def test_a_model_compiled_with_the_backend_says_why():
    model = nn.Sequential(nn.Linear(5, 3), nn.ReLU())
    options = {"fisher": "unit", "inner_backend": "eager"}
    compiled = torch.compile(model, backend="sngd", options=options)
    compiled(torch.randn(4, 5)).sum().backward()
    (site,) = sngd.explain(compiled).sites
    assert site.kind == "shared"
    assert "use reconstruct" in site.note


def test_the_papers_network_as_the_authors_have_it():
    sizes = [(784, 80), (80, 80), (80, 80), (80, 10)]
    layers = [part for pair in sizes for part in (nn.Linear(*pair), nn.ReLU())][:-1]
    paper = Config.paper()
    overrides = {"0.*": paper}
    plan = sngd.explain(nn.Sequential(*layers), paper.replace(fisher="unit"), overrides=overrides)
    assert [site.kind for site in plan.sites] == ["shared", "unit", "unit", "shared"]
    assert [site.spec.activation for site in plan.sites] == ["", "relu", "relu", ""]
