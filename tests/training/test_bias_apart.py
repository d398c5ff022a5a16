"""A bias that is not trained as its weight is has coordinates of its own, exactly."""

import copy
import io
import itertools

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import sngd_compile as sngd
from api import EVERY_STEP, apart, batch, mlp, train, trained
from api import FISHERS as SHARED_FISHERS

pytestmark = pytest.mark.usefixtures("float64")

FISHERS = {**SHARED_FISHERS, "mean": EVERY_STEP.replace(over_outputs="mean")}
EXACT = {name: config for name, config in FISHERS.items() if name != "sketch"}
every_fisher = pytest.mark.parametrize("config", FISHERS.values(), ids=FISHERS)


def halves(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters that are no biases, and the biases."""
    found = dict(net.named_parameters())
    weights = [p for name, p in found.items() if not name.endswith("bias")]
    return weights, [p for name, p in found.items() if name.endswith("bias")]


def groups(net: nn.Module, of_weights: dict, of_biases: dict) -> list[dict]:
    """Return one parameter group for weights and one for biases."""
    weights, biases = halves(net)
    return [{"params": weights, **of_weights}, {"params": biases, **of_biases}]


def folded(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return the ordinary parameters."""
    return {name: p.detach() for name, p in sngd.fold(net).named_parameters()}


def idle_steps(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Step with gradients of zero."""
    for step in range(steps):
        optimizer.zero_grad()
        (net(batch(step)) * 0).sum().backward()
        optimizer.step()


SETTINGS = {
    "decay": ({"weight_decay": 0.1}, {"weight_decay": 0.0}),
    "rates": ({"lr": 0.02}, {"lr": 0.07}),
    "momenta": ({"momentum": 0.5}, {"momentum": 0.9, "nesterov": True}),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("config", EXACT.values(), ids=EXACT)
def test_two_groups_train_as_if_the_bias_had_been_left_out(config, settings):
    torch.manual_seed(1)
    model = mlp()
    nets = [sngd.reconstruct(model, config, overrides=o) for o in ({}, {"*.bias": None})]
    for net in nets:
        train(net, torch.optim.SGD(groups(net, *settings), lr=0.03), steps=9)
    first, second = map(folded, nets)
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name], rtol=1e-9, atol=1e-11)


OTHER_LAYERS = {
    "grouped convolution and BatchNorm": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, (2, 3), groups=2), nn.BatchNorm2d(6), nn.Flatten()),
        (5, 4, 3, 5),
    ),
    "LayerNorm and PReLU": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.PReLU(7), nn.Linear(7, 3)),
        (9, 5),
    ),
    "wide": (lambda: nn.Sequential(nn.Linear(11, 9), nn.Tanh(), nn.Linear(9, 1)), (3, 11)),
}


@pytest.mark.parametrize(("make", "shape"), OTHER_LAYERS.values(), ids=OTHER_LAYERS)
def test_other_layers(make, shape):
    torch.manual_seed(1)
    model = make()
    nets = [sngd.reconstruct(model, EVERY_STEP, overrides=o) for o in ({}, {"*.bias": None})]
    for net in nets:
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(groups(net, {"lr": 0.01}, {"lr": 0.03}), lr=0.1)
        train(net, optimizer, inputs=lambda step: torch.randn(shape))
    first, second = map(folded, nets)
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name], rtol=1e-8, atol=1e-10)


def layers_of(net: nn.Module) -> list:
    """Return the Fisher layers."""
    return [*sngd.fisher_layers(net).values()]


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW], ids=["coupled", "decoupled"])
@pytest.mark.filterwarnings("ignore:AdamW steps")
@every_fisher
def test_decay_on_weights_alone_shrinks_them_and_leaves_biases(config, make):
    net = trained(config=config)
    x, before = batch(99), folded(net)
    outputs = net(x).detach()
    optimizer = make(groups(net, {"weight_decay": 0.1}, {"weight_decay": 0.0}), lr=0.2)
    optimizer.register_step_pre_hook(lambda *_: None)
    idle_steps(net, optimizer, 11)
    for name, weight in folded(net).items():
        kept = 1.0 if "bias" in name else (1 - 0.2 * 0.1) ** 11
        torch.testing.assert_close(weight, before[name] * kept, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(outputs, net(x))


@every_fisher
def test_parting_keeps_the_function_the_momentum_and_waiting_gradients(config):
    net = trained(config=config)
    optimizer = train(net)
    train(net, optimizer, steps=1)
    net(batch(3)).square().mean().backward()
    outputs = net(batch(99)).detach()
    gradient, root = net[0].weight.grad.clone(), sngd.fisher_layers(net)["0.weight"]
    velocity = in_w(net, optimizer)
    weights, _ = halves(net)
    other = torch.optim.SGD(weights, lr=0.0)
    other.step()
    torch.testing.assert_close(net(batch(99)), outputs, rtol=1e-10, atol=1e-11)
    assert sngd.fisher_layers(net)["0.weight"] is root
    torch.testing.assert_close(net[0].weight.grad, gradient, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(in_w(net, optimizer), velocity, rtol=1e-8, atol=1e-11)


def in_w(net: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Return the momentum of the first layer as a direction of its ordinary weight."""
    copied = copy.deepcopy(net)
    with torch.no_grad():
        for own, parameter in zip(copied.parameters(), net.parameters(), strict=True):
            own.copy_(optimizer.state[parameter]["momentum_buffer"])
    return sngd.fold(copied)[0].weight.detach()


def only(of: str):
    def given(net: nn.Module) -> list[nn.Parameter]:
        return halves(net)[of == "biases"]

    return given


def frozen(of: str):
    def given(net: nn.Module) -> list[nn.Parameter]:
        for parameter in halves(net)[of == "biases"]:
            parameter.requires_grad_(False)
        return list(net.parameters())

    return given


STILL = {
    "weights in no optimizer": ("weight", only("biases")),
    "biases in no optimizer": ("bias", only("weights")),
    "frozen weights": ("weight", frozen("weights")),
    "frozen biases": ("bias", frozen("biases")),
}


@pytest.mark.parametrize(("still", "given"), STILL.values(), ids=STILL)
@every_fisher
def test_what_nobody_steps_stays(config, still, given):
    net = trained(config=config)
    before = folded(net)
    train(net, torch.optim.SGD(given(net), lr=0.05, momentum=0.9), steps=5)
    for name, weight in folded(net).items():
        moved = float((weight - before[name]).abs().max())
        assert moved < 1e-10 if still in name else moved > 1e-5


def test_a_bias_frozen_in_the_middle_stays_and_one_thawed_learns():
    net = trained()
    optimizer = train(net)
    net[0].bias.requires_grad_(False)
    before = folded(net)
    train(net, optimizer)
    torch.testing.assert_close(folded(net)["0.bias"], before["0.bias"], rtol=0, atol=1e-12)
    net[0].bias.requires_grad_(True)
    train(net, optimizer)
    assert not torch.allclose(folded(net)["0.bias"], before["0.bias"])


def test_groups_that_part_later_part_the_biases():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    optimizer = torch.optim.SGD(groups(net, {}, {}), lr=0.05)
    train(net, optimizer)
    assert all(layer.has_bias for layer in layers_of(net))
    optimizer.param_groups[1]["lr"] = 0.0
    before = folded(net)
    train(net, optimizer)
    for name in ("0.bias", "2.bias"):
        torch.testing.assert_close(folded(net)[name], before[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("loaded", [False, True], ids=["set", "in the state"])
def test_an_optimizer_that_loads_a_state_has_other_groups(loaded):
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    optimizer = torch.optim.SGD(groups(net, {}, {}), lr=0.05)
    train(net, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][1]["lr"] = 0.0 if loaded else 0.05
    optimizer.load_state_dict(state)
    optimizer.param_groups[1]["lr"] = 0.0
    # Without a copy of the network, after which optimizers look again.
    before = [net[place].bias.detach().clone() for place in (0, 2)]
    train(net, optimizer)
    for place, bias in zip((0, 2), before, strict=True):
        torch.testing.assert_close(net[place].bias.detach(), bias, rtol=0, atol=1e-12)


def test_groups_of_one_setting_and_labels_part_nothing():
    nets = [sngd.reconstruct(mlp().requires_grad_(), EVERY_STEP) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    labelled = groups(nets[0], {"label": "decay"}, {"label": "none"})
    for net, given in zip(nets, (labelled, net_parameters(nets[1])), strict=True):
        train(net, torch.optim.SGD(given, lr=0.03, momentum=0.9), steps=8)
    assert apart(*nets) == 0.0


def net_parameters(net: nn.Module) -> list[nn.Parameter]:
    """Return all."""
    return list(net.parameters())


def test_a_parameter_that_changes_its_group_is_noticed():
    net = trained()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    train(net, optimizer)
    moved = optimizer.param_groups[0]["params"].pop()
    optimizer.add_param_group({"params": [moved], "lr": 0.0})
    before = folded(net)["2.bias"]
    train(net, optimizer)
    torch.testing.assert_close(folded(net)["2.bias"], before, rtol=0, atol=1e-12)


def test_an_old_optimizer_says_nothing_of_a_new_one():
    net = trained()
    old = torch.optim.SGD(net.parameters(), lr=0.05)
    train(net, old)
    before = folded(net)["0.bias"]
    train(net, torch.optim.SGD(halves(net)[0], lr=0.05))
    torch.testing.assert_close(folded(net)["0.bias"], before, rtol=0, atol=1e-12)


@every_fisher
def test_checkpoints_resume_in_either_form(config):
    def fresh():
        return sngd.reconstruct(mlp(), config)

    def optimizer_of(net):
        return torch.optim.SGD(groups(net, {"weight_decay": 0.1}, {}), lr=0.03, momentum=0.9)

    net = fresh()
    optimizer = optimizer_of(net)
    joint = copy.deepcopy(net.state_dict())
    train(net, optimizer)
    file = io.BytesIO()
    torch.save((net.state_dict(), optimizer.state_dict()), file)
    train(net, optimizer, steps=7, first=5)
    for resumed in (fresh(), trained(config=config)):
        again = optimizer_of(resumed)
        file.seek(0)
        for part, state in zip((resumed, again), torch.load(file), strict=True):
            part.load_state_dict(state)
        train(resumed, again, steps=7, first=5)
        assert apart(net, resumed) < 1e-11
        resumed.load_state_dict(joint)
        assert all(layer.has_bias for layer in layers_of(resumed))
        # The same optimizer goes on with groups of two settings, which part the biases anew.
        train(resumed, again)
        assert not any(layer.has_bias for layer in layers_of(resumed))


def test_copies_files_and_followers_of_parted_networks():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    averaged, target = AveragedModel(net), sngd.follow(copy.deepcopy(net), net)
    optimizer = torch.optim.SGD(groups(net, {"weight_decay": 0.1}, {}), lr=0.03)
    mean, count = None, 0
    for step in range(6):
        train(net, optimizer, steps=1, first=step)
        averaged.update_parameters(net)
        weights, count = folded(net), count + 1
        mean = (
            weights
            if mean is None
            else {n: mean[n] + (w - mean[n]) / count for n, w in weights.items()}
        )
    for name, weight in folded(averaged.module).items():
        torch.testing.assert_close(weight, mean[name], rtol=1e-9, atol=1e-11)
    for layer in (*layers_of(averaged), *layers_of(target)):
        assert not layer.has_bias
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for twin in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert apart(net, twin) == 0.0
        train(twin, torch.optim.SGD(groups(twin, {"weight_decay": 0.1}, {}), lr=0.03))
    late = sngd.follow(copy.deepcopy(sngd.reconstruct(mlp(), EVERY_STEP)), net)
    assert torch.equal(layers_of(late)[0].root, layers_of(net)[0].root)


def test_the_report_shows_it():
    net = trained()
    train(net, torch.optim.SGD(halves(net)[0], lr=0.05))
    sites = {site.name: site for site in sngd.explain(net).sites}
    assert "bias" in sites["0.weight"].note
    assert sites["0.weight"].spec == sngd.fisher_layers(net)["0.weight"].spec


def test_a_compiled_network_goes_on():
    torch._dynamo.reset()
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for each, owner in ((compiled, net), (twin, twin)):
        train(each, torch.optim.SGD(groups(owner, {"lr": 0.01}, {"lr": 0.05}), lr=0.1), steps=6)
    assert apart(net, twin) < 1e-11


def test_an_idle_decision_costs_nothing_later():
    net = trained()
    optimizer = torch.optim.SGD(groups(net, {"weight_decay": 0.1}, {}), lr=0.03)
    train(net, optimizer, steps=2)
    kept = [layer.root_buffers for layer in layers_of(net)]
    train(net, optimizer, steps=6)
    assert all(
        itertools.starmap(
            lambda a, b: a is b, zip(kept, (v.root_buffers for v in layers_of(net)), strict=True)
        )
    )
