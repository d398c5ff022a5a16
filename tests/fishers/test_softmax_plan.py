"""Which layers give logits, what the plan says of them, and where "shared" is kept."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config

pytestmark = pytest.mark.usefixtures("float64")
SOFTMAX = Config(fisher="softmax", max_rows=None)


def mlp() -> nn.Sequential:
    """One hidden layer of odd size."""
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


class Heads(nn.Module):
    """Two heads, one of which is read twice."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return logits, and the logarithm of what is likely."""
        two = self.two(x)
        return {"one": self.one(x), "two": two, "sure": two.log_softmax(-1)}


def plan_of(model: nn.Module, config: Config = SOFTMAX) -> dict[str, tuple[str, str]]:
    """Return kind and note of every site, after reconstruction the same as before."""
    plan = sngd.explain(model, config)
    assert str(sngd.explain(sngd.reconstruct(model, config))) == str(plan)
    return {site.name: (site.kind, site.note) for site in plan.sites}


def test_the_plan_takes_what_the_model_returns():
    found = plan_of(mlp())
    assert found["2.weight"] == (
        "softmax",
        "its outputs are logits: the model returns its result",
    )
    kind, note = found["0.weight"]
    assert kind == "shared"
    assert note == 'fisher = "softmax" is not to be had, "shared" is kept: 1 (Tanh) follows it'
    assert "softmax 15 " in str(sngd.explain(mlp(), SOFTMAX))
    heads = plan_of(Heads())
    assert heads["one.weight"][0] == "softmax"
    assert heads["two.weight"][0] == "shared"


def test_a_configured_layer_is_taken_as_it_is():
    configured = SOFTMAX.replace(activation="linear")
    kind, note = plan_of(Heads(), configured)["two.weight"]
    assert (kind, note) == ("softmax", "its outputs are logits: linear follows, as configured")
    kind, note = plan_of(nn.Linear(3, 2), SOFTMAX.replace(activation="relu"))["weight"]
    assert kind == "shared"
    assert "relu follows, as configured" in note


REFUSED = [
    (nn.Linear(3, 1), "weight", "the softmax of one output is constant"),
    (nn.Conv1d(4, 6, 1, groups=2), "weight", "one softmax goes over all of them"),
    (nn.LSTM(3, 4), "weight_ih_l0", "runs as it is"),
    (nn.Sequential(nn.Linear(3, 4), nn.Flatten()), "0.weight", "1 (Flatten) follows it"),
    (nn.LayerNorm(3), "weight", "factors of their own"),
]


@pytest.mark.parametrize(("model", "name", "reason"), REFUSED)
def test_shared_is_kept_elsewhere_and_the_plan_says_why(model, name, reason):
    kind, note = plan_of(model)[name]
    assert kind == "shared"
    assert note.startswith('fisher = "softmax" is not to be had, "shared" is kept: ')
    assert reason in note


def test_factors_above_the_limit_are_shared_and_then_diagonal():
    kinds, notes = [], []
    for limit in (8 * 20**2, 8 * 20**2 - 1, 199):
        (site,) = sngd.explain(nn.Linear(4, 4), SOFTMAX.replace(max_factor_bytes=limit)).sites
        kinds.append(site.kind)
        notes.append(site.note)
    assert kinds == ["softmax", "shared", "diagonal"]
    assert "all 20 weights, 3,200 bytes, is above max_factor_bytes = 3,199" in notes[1]


def test_memory_and_work_are_those_of_one_large_factor():
    net = sngd.reconstruct(nn.Linear(7, 3), SOFTMAX)
    (site,) = sngd.explain(net).sites
    (layer,) = sngd.fisher_layers(net).values()
    assert site.state_bytes == sum(buffer.nbytes for buffer in layer.buffers())
    assert layer.factor.shape == layer.root.shape == (24, 24)


def test_what_is_wrong_is_counted_in_all_its_directions():
    net = sngd.reconstruct(nn.Linear(19, 3), SOFTMAX.replace(observe_every=1))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    F.cross_entropy(net(torch.ones(40, 19)), torch.zeros(40, dtype=torch.int64)).backward()
    optimizer.step()
    assert "the damping rules 97% of 60 directions" in str(sngd.explain(net))


def test_a_model_compiled_with_the_backend_says_why():
    torch._dynamo.reset()
    options = {"fisher": "softmax", "inner_backend": "eager"}
    compiled = torch.compile(nn.Linear(5, 3), backend="sngd", options=options)
    compiled(torch.randn(4, 5)).sum().backward()
    (site,) = sngd.explain(compiled).sites
    assert site.kind == "shared"
    assert "use reconstruct" in site.note
