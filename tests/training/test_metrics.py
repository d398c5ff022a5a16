"""`metrics` says of every layer what dense linear algebra says of its metric and its gradient."""

import copy
import gc
import importlib
import math
from dataclasses import asdict

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from api import EVERY_STEP, FISHERS, batch, mlp, train, trained
from sngd_compile.fisher.kinds.base import kind_of
from sngd_kernels import sketch_basis

measured = importlib.import_module("sngd_compile.metrics")
pytestmark = pytest.mark.usefixtures("float64")

OF_LAYER = {"damping", "relative_damping", "effective_rank", "condition", "residual"}
OF_LAYER |= {"root_age", "rows", "norm", "share", "bound", "trust"}
OF_OUTPUTS = {f"output_{name}" for name in OF_LAYER & {"damping", "relative_damping"}}
OF_OUTPUTS |= {"output_effective_rank", "output_condition"}
OF_TOTAL = {"norm", "plain_norm", "layers", "observed_layers", "reconstructed_share"}
OF_TOTAL |= {"observed_share", "condition", "root_age"}

CONFIGS = {**FISHERS, "mean": EVERY_STEP.replace(over_outputs="mean")}
CONFIGS["undamped"] = EVERY_STEP.replace(damping_rel_trace=1e-9, damping_abs=0.0)
every_fisher = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
"""Every kind of local Fisher; `unit` and `block` give the kind that a layer can have."""


class Odd(nn.Module):
    """Layers of odd sizes: groups, a depthwise weight, no bias, a table, a single output."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.first = nn.Conv1d(6, 9, 2, groups=3)
        self.second = nn.Conv1d(9, 9, 1, groups=9, bias=False)
        self.third = nn.Linear(9, 7, bias=False)
        self.last = nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Take rows `[N, 5]`."""
        indices = (x * 7).abs().long().clamp(max=10)
        x = torch.tanh(self.second(torch.tanh(self.first(self.table(indices).mT))))
        return self.last(torch.tanh(self.third(x.mean(-1))))


def slowly(net: nn.Module) -> nn.Module:
    """Train a network, at a rate that no damping is too small for."""
    train(net, torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9))
    return net


def of(found: dict[str, float], name: str) -> dict[str, float]:
    """Return the metrics of one layer, or the totals."""
    return {key.rpartition("/")[2]: v for key, v in found.items() if key.startswith(f"{name}/")}


def assert_close(one: float, other: Tensor | float, tolerance: float = 1e-9) -> None:
    """Compare two numbers, relative to the larger one or to 1."""
    assert one == pytest.approx(float(other), rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("make", [mlp, Odd])
@every_fisher
def test_each_says_what_the_eigenvalues_say(config, make):
    net = slowly(sngd.reconstruct(make(), config))
    found = sngd.metrics(net)
    for name, layer in sngd.fisher_layers(net).items():
        numbers = of(found, name)
        # A condition of 1e9 takes nine digits of what inverting a dense matrix can tell.
        eigenvalues = torch.linalg.eigvalsh(layer.metric())
        condition = (eigenvalues[..., -1] / eigenvalues[..., 0]).max()
        assert_close(numbers["condition"] / float(condition), 1.0, 1e-16 * float(condition) + 1e-9)
        stand_in = eigenvalues - layer.damping
        rank = stand_in.sum(-1).square() / stand_in.square().sum(-1)
        assert_close(numbers["effective_rank"], rank.mean(), 1e-7)
        assert 1 <= numbers["effective_rank"] <= layer.size * (1 + 1e-9)
        mean = kind_of(layer.spec).trace(layer.spec, layer.factor) * layer.scale / layer.size
        assert numbers["damping"] == layer.damping
        assert_close(numbers["relative_damping"], layer.damping / mean)
        assert numbers["rows"] == layer.rows_seen


def test_an_output_side_has_its_own():
    net = trained(Odd(), FISHERS["kronecker"])
    found = sngd.metrics(net)
    layers = sngd.fisher_layers(net).items()
    sides = {name: layer.output_side for name, layer in layers if layer.output_side}
    assert len(sides) >= 3
    for name, side in sides.items():
        numbers = of(found, name)
        assert numbers.keys() == OF_LAYER | OF_OUTPUTS
        eigenvalues = torch.linalg.eigvalsh(side.factor)
        damped = eigenvalues + side.damping
        assert_close(numbers["output_condition"], (damped[..., -1] / damped[..., 0]).max(), 1e-7)
        rank = eigenvalues.sum(-1).square() / eigenvalues.square().sum(-1)
        assert_close(numbers["output_effective_rank"], rank.mean())
        assert_close(numbers["output_relative_damping"], side.damping / eigenvalues.mean())
    both = [v for key, v in found.items() if key.endswith("condition") and "total" not in key]
    assert found["total/condition"] == max(both)


@pytest.mark.parametrize("make", [mlp, Odd])
@every_fisher
def test_the_norm_is_that_of_the_natural_gradient(config, make):
    """`|g'|^2 = n . g`: g of the folded network, n from how a small plain step moves it."""
    net = slowly(sngd.reconstruct(make(), config))
    before, rate = sngd.fold(net), 1e-3
    net.zero_grad()
    for one in (net, before):
        one(batch(50)).square().mean().backward()
    found = sngd.metrics(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.sub_(parameter.grad, alpha=rate)
    after = dict(sngd.fold(net).named_parameters())
    products = {
        name: float(((p - after[name]).detach() / rate * p.grad).sum())
        for name, p in before.named_parameters()
    }
    squares = 0.0
    for name, layer in sngd.fisher_layers(net).items():
        bias = products[name.replace("weight", "bias")] if layer.has_bias else 0.0
        assert_close(found[f"{name}/norm"], math.sqrt(products[name] + bias), 1e-8)
        squares += products[name] + bias
    for name in sngd.fisher_layers(net):
        assert_close(found[f"{name}/share"], found[f"{name}/norm"] ** 2 / squares, 1e-8)
    total = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    assert_close(math.hypot(found["total/norm"], found["total/plain_norm"]), total)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_residual_is_what_the_columns_leave_of_the_trace(rank):
    x = batch(0, 13, 7)
    net = sngd.reconstruct(nn.Linear(7, 3), EVERY_STEP.replace(fisher="sketch", rank=rank))
    net(x)
    sngd.refresh_(net)
    rows = torch.cat([x, torch.ones(13, 1)], 1)
    exact = rows.T @ rows / 13
    omega = sketch_basis(8, rank, torch.float64, x.device)
    images = exact @ omega
    known = images @ torch.linalg.solve(omega.T @ images, images.T)
    residual = 1 - float(known.trace() / exact.trace())
    assert_close(sngd.metrics(net)["weight/residual"], residual)
    assert (residual > 0.01) == (rank < 8)


@pytest.mark.parametrize("bias", [True, False])
def test_a_root_of_fewer_columns_than_its_sketch(bias):
    config = EVERY_STEP.replace(fisher="sketch", rank=20, step_budget=0.05)
    net = sngd.reconstruct(nn.Linear(29, 3, bias=bias), config)
    net(batch(0, 30, 29) * torch.linspace(1, 0.1, 29))
    sngd.refresh_(net)
    (layer,) = sngd.fisher_layers(net).values()
    assert layer.root_buffers.columns < 20
    stand_in = torch.linalg.eigvalsh(layer.metric()) - layer.damping
    rank = stand_in.sum().square() / stand_in.square().sum()
    assert_close(sngd.metrics(net)["weight/effective_rank"], rank)


def test_all_columns_say_what_an_exact_factor_says():
    configs = [EVERY_STEP.replace(fisher=kind, rank=99) for kind in ("sketch", "shared")]
    model = Odd()
    first, second = (sngd.metrics(trained(model, config)) for config in configs)
    for key, value in first.items():
        assert_close(value, second[key], 1e-6)


@every_fisher
def test_before_anything_was_seen_all_are_defined(config):
    net = sngd.reconstruct(Odd(), config)
    found = sngd.metrics(net)
    for name in sngd.fisher_layers(net):
        numbers = {key: value for key, value in of(found, name).items() if value}
        for known in ("bound", "trust"):  # before anything is seen
            numbers.pop(known, None)
        ones = {"damping", "condition"} | (OF_OUTPUTS & {"output_damping", "output_condition"})
        assert numbers == dict.fromkeys(ones & of(found, name).keys(), 1.0)
    totals = of(found, "total")
    assert totals.keys() == OF_TOTAL
    assert totals["observed_layers"] == totals["observed_share"] == totals["norm"] == 0.0


@every_fisher
def test_inputs_of_zeros_leave_no_nan(config):
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False))
    net = sngd.reconstruct(model, config)
    train(net, inputs=lambda step: torch.zeros(7, 5))
    found = sngd.metrics(net)
    assert all(map(math.isfinite, found.values()))
    assert found["0.weight/effective_rank"] == found["0.weight/share"] == 0.0
    assert found["total/observed_layers"] == 2.0


@pytest.mark.parametrize("power", [-80, 76])
@every_fisher
def test_inputs_near_the_ends_of_float64(config, power):
    """Squares of their squares are subnormal, or sums of those infinite."""
    net = sngd.reconstruct(nn.Linear(5, 3, bias=False), config)
    net(batch() * 10.0**power)
    sngd.refresh_(net)
    found = sngd.metrics(net)
    assert all(map(math.isfinite, found.values()))
    assert 1 <= found["weight/effective_rank"] <= 5 or config.fisher in ("kronecker", "unit")


def ages(net: nn.Module) -> set[float]:
    return {v for key, v in sngd.metrics(net).items() if key.endswith("weight/root_age")}


def test_the_age_counts_from_the_refresh_that_made_the_root():
    config = sngd.Config(refresh_every=15, early_refreshes=(4,), observe_every=7, max_rows=None)
    net = sngd.reconstruct(mlp(), config.replace(early_observations=()))
    made, optimizer, found = 0, None, []
    for step in range(40):
        optimizer = train(net, optimizer, steps=1, first=step)
        if step == 22:
            sngd.refresh_(net)
        # The refresh after step 30 has seen step 28.
        made = step + 1 if step + 1 in (4, 15, 23, 30) else made
        found.append(ages(net) == {step + 1.0 - made})
    assert all(found)
    sngd.refresh_(net)
    assert ages(net) == {0.0}
    sngd.refresh_(net)  # nothing was observed since: the root stays
    train(net, optimizer, steps=1, first=40)
    assert ages(net) == {1.0}


@pytest.mark.parametrize("observe_every", [1, 7, 20])
@pytest.mark.parametrize("refresh_every", [5, 6, 30])
def test_a_resumed_run_knows_the_age_of_its_roots(observe_every, refresh_every):
    config = sngd.Config(refresh_every=refresh_every, observe_every=observe_every)
    net, optimizer = sngd.reconstruct(mlp(), config), None
    resumed = sngd.reconstruct(mlp(), config)
    for step in range(45):
        optimizer = train(net, optimizer, steps=1, first=step)
        resumed.load_state_dict(net.state_dict())
        assert ages(resumed) == ages(net) == ages(copy.deepcopy(net))


def test_a_layer_that_is_never_used_has_a_root_as_old_as_the_run():
    class Unused(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    net = trained(Unused(nn.Linear(5, 4), nn.Linear(4, 3)), EVERY_STEP)
    found = sngd.metrics(net)
    assert (found["0.weight/root_age"], found["1.weight/root_age"]) == (1.0, 5.0)
    assert (found["1.weight/rows"], found["total/observed_layers"]) == (0.0, 1.0)
    assert found["total/observed_share"] == 24 / 39


@every_fisher
def test_a_call_is_one_transfer_and_decomposes_each_root_once(config, monkeypatch):
    net = sngd.reconstruct(Odd(), config)
    optimizer = train(net, torch.optim.SGD(net.parameters(), lr=1e-4))
    counts: dict[str, int] = dict.fromkeys(("tolist", "item", "__float__", "svdvals"), 0)

    def count(owner, name):
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            counts[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    for name in ("tolist", "item", "__float__"):
        count(Tensor, name)
    count(torch.linalg, "svdvals")
    first = sngd.metrics(net)
    decomposed = counts.pop("svdvals")
    assert counts == {"tolist": 1, "item": 0, "__float__": 0}
    counts["svdvals"] = 0
    assert sngd.metrics(net) == first
    assert counts == {"tolist": 2, "item": 0, "__float__": 0, "svdvals": 0}
    monkeypatch.undo()
    train(net, optimizer, steps=1, first=5)  # a refresh follows
    count(torch.linalg, "svdvals")
    assert sngd.metrics(net) != first
    assert counts["svdvals"] == decomposed


@every_fisher
def test_a_call_changes_nothing(config):
    nets = [sngd.reconstruct(mlp(), config)]
    nets.append(copy.deepcopy(nets[0]))
    optimizers = [None, None]
    for step in range(6):
        optimizers = [
            train(n, o, steps=1, first=step) for n, o in zip(nets, optimizers, strict=True)
        ]
        sngd.metrics(nets[0])
    for one, other in zip(*(net.state_dict().values() for net in nets), strict=True):
        assert torch.equal(one, other)


def test_what_is_kept_is_found_anew_when_a_buffer_changes():
    net, other = trained(), trained(config=EVERY_STEP.replace(damping_rel_trace=0.1))
    first = sngd.metrics(net)
    other.load_state_dict(net.state_dict())
    assert sngd.metrics(other)["0.weight/condition"] == first["0.weight/condition"]
    net.load_state_dict(sngd.fold(net).state_dict())  # a plain checkpoint: roots are identities
    assert sngd.metrics(net)["total/condition"] == 1.0
    with torch.no_grad():
        sngd.fisher_layers(other)["0.weight"].factor.mul_(2)
    assert_close(
        2 * sngd.metrics(other)["0.weight/relative_damping"], first["0.weight/relative_damping"]
    )


def test_groups_of_parameters_and_biases_apart():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    own = dict(net.named_parameters())
    biases = [p for name, p in own.items() if name.endswith("bias")]
    weights = [p for name, p in own.items() if name.endswith("weight")]
    train(net, torch.optim.SGD([{"params": weights}, {"params": biases, "lr": 0.01}], lr=0.03))
    found = sngd.metrics(net)
    assert not any(layer.has_bias for layer in sngd.fisher_layers(net).values())
    assert_close(found["total/plain_norm"], math.hypot(*(float(b.grad.norm()) for b in biases)))
    explained = sngd.explain(net)
    assert found["total/reconstructed_share"] == explained.reconstructed_share == 32 / 39
    assert found["total/observed_share"] == explained.observed_share


def test_tied_weights_are_one_layer_and_compiled_wrappers_no_part_of_names():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(5, 5), nn.Linear(5, 5)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(torch.tanh(self.one(x)))

    net = trained(Tied(), EVERY_STEP)
    found = sngd.metrics(net)
    assert {key.rpartition("/")[0] for key in found} == {"one.weight", "total"}
    assert of(found, "one.weight").keys() == OF_LAYER
    assert sngd.metrics(torch.compile(net, backend="eager")) == found
    net.one = torch.compile(net.one, backend="eager")
    assert sngd.metrics(net) == found


@pytest.mark.parametrize("fisher", ["shared", "diagonal", "sketch"])
def test_a_model_compiled_with_the_backend_says_what_its_reconstruction_says(fisher):
    config = EVERY_STEP.replace(fisher=fisher, rank=2)
    model = Odd()
    net = sngd.reconstruct(model, config)
    options = {**asdict(config), "inner_backend": "eager"}
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="sngd", options=options)
    assert sngd.metrics(compiled)["total/layers"] == 0.0  # no frame has run
    for one in (net, compiled):
        train(one, torch.optim.SGD(one.parameters(), lr=0.03))
    found, expected = sngd.metrics(compiled), sngd.metrics(net)
    torch._dynamo.reset()
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert_close(value, expected[key], 1e-7)


def test_half_a_gradient_sparse_and_complex_ones():
    net = trained()
    whole = sngd.metrics(net)["0.weight/norm"]
    bias = dict(net.named_parameters())["0.bias"]
    of_bias, bias.grad = float(bias.grad.norm()), None
    assert_close(sngd.metrics(net)["0.weight/norm"], math.sqrt(whole**2 - of_bias**2))
    other = nn.Embedding(5, 3, sparse=True)
    other(torch.tensor([1, 1, 2])).sum().backward()
    assert_close(sngd.metrics(other)["total/plain_norm"], math.sqrt(3 * (4 + 1)))
    other = nn.Linear(2, 2, dtype=torch.complex128)
    other(torch.ones(1, 2, dtype=torch.complex128)).abs().sum().backward()
    expected = nn.utils.clip_grad_norm_(other.parameters(), 1e9)
    assert_close(sngd.metrics(other)["total/plain_norm"], expected)


def test_a_network_without_layers_and_what_is_no_network():
    assert of(sngd.metrics(nn.Tanh()), "total") == dict.fromkeys(OF_TOTAL, 0.0) | {"condition": 1.0}
    with pytest.raises(sngd.ModelError, match=r"expected a torch\.nn\.Module"):
        sngd.metrics([])
    net = sngd.reconstruct(nn.Linear(3, 2, device="meta"))
    with pytest.raises(sngd.ModelError, match="weight: its Fisher layer is on the meta device"):
        sngd.metrics(net)


def test_a_removed_network_leaves_nothing_kept():
    sngd.metrics(trained())
    gc.collect()
    before = len(measured._known)
    sngd.metrics(trained())
    gc.collect()
    assert len(measured._known) == before
