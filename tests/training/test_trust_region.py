"""No step moves a layer's outputs by more than its trust region allows, and none is turned."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import sngd_compile as sngd
from api import apart, batch, mlp
from sngd_compile.training.steps.trust_region import SMALLEST

pytestmark = pytest.mark.usefixtures("float64")
RATE = 0.04
EXACT = sngd.Config(
    observe_every=1, refresh_every=1000, early_refreshes=(), max_rows=None, rank=None
).replace(damping_rel_trace=0.0, damping_abs=0.0, trust_radius=None, trust_share=None)
"""With the rows of one batch and no damping the metric is that of the outputs on that batch."""


def net_of(config: sngd.Config, inputs: Tensor, model: nn.Module | None = None) -> nn.Module:
    """Reconstruct a network whose roots are those of the inputs."""
    torch.manual_seed(0)
    net = sngd.reconstruct(model or mlp(), config)
    net(inputs)
    sngd.refresh_(net)
    return net


def outputs_of(net: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Return what each layer gives, were the layers before it as they are."""
    found, hooks = {}, []
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            hooks.append(
                module.register_forward_hook(
                    lambda module, args, output, name=name: found.update({name: (args[0], output)})
                )
            )
    with torch.no_grad():
        net(inputs)
    for hook in hooks:
        hook.remove()
    return found


def rms(values: Tensor) -> float:
    """Return the root of the mean square."""
    return math.sqrt(values.detach().square().mean())


def moves(net: nn.Module, inputs: Tensor, strength: float) -> dict[str, tuple[float, float]]:
    """Take a step; return how far each layer moved its outputs, and how large they were."""
    before = outputs_of(net, inputs)
    optimizer = SGD(net.parameters(), lr=RATE)
    (strength * net(inputs)).square().sum().backward()
    optimizer.step()
    layers = dict(sngd.fold(net).named_modules())
    return {
        name: (rms(layers[name](given) - output), rms(output))
        for name, (given, output) in before.items()
    }


@pytest.mark.parametrize("over_outputs", ["sum", "mean"])
def test_a_radius_is_how_far_outputs_move(over_outputs):
    inputs = batch(size=50)
    config = EXACT.replace(trust_radius=0.3, over_outputs=over_outputs)
    for moved, _ in moves(net_of(config, inputs), inputs, 1e3).values():
        assert moved == pytest.approx(RATE * 0.3, rel=1e-9)


@pytest.mark.parametrize("over_outputs", ["sum", "mean"])
def test_a_share_is_of_what_a_layer_gives_and_the_last_one_is_free(over_outputs):
    inputs = batch(size=50)
    config = EXACT.replace(trust_radius=4.0, trust_share=0.5, over_outputs=over_outputs)
    found = moves(net_of(config, inputs), inputs, 1e3)
    *others, last = found.values()
    for moved, size in others:
        assert moved == pytest.approx(RATE * 0.5 * size, rel=1e-9)
    assert last[0] == pytest.approx(RATE * 4.0, rel=1e-9)


def test_the_smaller_bound_counts_and_of_the_last_layer_the_larger():
    inputs = batch(size=50)
    found = moves(net_of(EXACT.replace(trust_radius=1e-3, trust_share=0.5), inputs), inputs, 1e3)
    (first, _), (last, size) = found.values()
    assert first == pytest.approx(RATE * 1e-3, rel=1e-9)
    assert last == pytest.approx(RATE * 0.5 * size, rel=1e-9)


def test_a_layer_of_zeros_gets_away():
    inputs = batch(size=50)
    model = mlp()
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    nn.init.ones_(model[2].weight)
    # Of units that are all zero the second factor is singular, undamped.
    config = EXACT.replace(trust_share=0.5, damping_rel_trace=1e-9)
    (moved, size), _ = moves(net_of(config, inputs, model), inputs, 1e9).values()
    assert (moved, size) == (pytest.approx(RATE * 0.5 * SMALLEST, rel=1e-6), 0.0)


def gradients(net: nn.Module) -> list[Tensor]:
    """Return those that the last step took."""
    return [p.grad for p in net.parameters()]


def test_a_gradient_is_shortened_never_turned_and_short_ones_stay_as_they_are():
    inputs = batch(size=50)
    net, free = (net_of(EXACT, inputs) for _ in range(2))
    for each in (net, free):
        each(inputs).square().mean().backward()
    lengths = [
        math.hypot(*(float(p.grad.norm()) for p in m.parameters(recurse=False)))
        for m in free
        if len(list(m.parameters(recurse=False)))
    ]
    for site in sngd.fisher_layers(net).values():
        site.config = site.config.replace(trust_radius=(min(lengths) + max(lengths)) / 2)
    SGD(net.parameters(), lr=RATE).step()
    pairs = list(zip(gradients(net), gradients(free), strict=True))
    ratios = [(a / b).flatten() for a, b in pairs]
    assert all(ratio.amax() - ratio.amin() < 1e-12 for ratio in ratios)
    unchanged = [torch.equal(a, b) for a, b in pairs]
    assert sorted(unchanged) == [False, False, True, True]


@pytest.mark.parametrize("optimizer", [torch.optim.RMSprop, torch.optim.LBFGS])
def test_only_descent_is_bounded(optimizer):
    inputs = batch(size=50)
    net, free = (net_of(config, inputs) for config in (EXACT.replace(trust_radius=1e-3), EXACT))
    for each in (net, free):
        stepper = optimizer(each.parameters(), lr=1e-3)

        def closure(each=each, stepper=stepper):
            stepper.zero_grad()
            loss = each(inputs).square().sum()
            loss.backward()
            return loss

        with pytest.warns(sngd.SngdWarning, match="not natural"):
            stepper.step(closure)
    assert apart(net, free) == 0.0


def test_a_closure_is_bounded_too():
    inputs = batch(size=50)
    by_closure, expected = (net_of(EXACT.replace(trust_radius=0.1), inputs) for _ in range(2))
    optimizer = SGD(by_closure.parameters(), lr=RATE)

    def closure():
        optimizer.zero_grad()
        loss = by_closure(inputs).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected(inputs).square().sum().backward()
    SGD(expected.parameters(), lr=RATE).step()
    assert apart(by_closure, expected) == 0.0


@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients_have_the_bound_of_what_they_stand_for(fused):
    inputs = batch(size=50)
    net, expected = (net_of(EXACT.replace(trust_radius=0.1), inputs) for _ in range(2))
    optimizer = SGD(net.parameters(), lr=RATE, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    scaler.scale(net(inputs).square().sum()).backward()
    scaler.step(optimizer)
    expected(inputs).square().sum().backward()
    SGD(expected.parameters(), lr=RATE).step()
    assert apart(net, expected) < 1e-14


def test_micro_batches_have_the_bound_of_their_sum():
    inputs = batch(size=50)
    whole, parts = (net_of(EXACT.replace(trust_radius=0.1), inputs) for _ in range(2))
    whole(inputs).square().sum().backward()
    for part in inputs.split(20):
        parts(part).square().sum().backward()
    for net in (whole, parts):
        SGD(net.parameters(), lr=RATE).step()
    assert apart(whole, parts) < 1e-13


def test_gradients_whose_squares_leave_their_dtype_are_bounded():
    net = sngd.reconstruct(mlp().float(), sngd.Config())
    net(batch().float()).sum().backward()
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 1e30)
    SGD(net.parameters(), lr=1.0).step()
    assert all(p.isfinite().all() and p.abs().max() < 10 for p in net.parameters())


def test_kronecker_has_another_unit_and_no_bound():
    config = EXACT.replace(fisher="kronecker", trust_radius=1e-6, trust_share=1e-6)
    net = sngd.reconstruct(mlp(), config)
    net(batch()).square().mean().backward()
    before = [gradient.clone() for gradient in gradients(net)]
    SGD(net.parameters(), lr=1e-3).step()
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(net), strict=True))


class TwoHeads(nn.Module):
    """A trunk, and a head that is tied to the table in front."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.trunk = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(self.trunk(self.table(tokens)).tanh())


def test_the_last_weight_is_found_by_every_module_that_holds_it():
    net = sngd.reconstruct(TwoHeads())
    free = [name for name, layer in sngd.fisher_layers(net).items() if layer.is_last]
    assert free == ["table.weight", "head.weight"]
    frozen = mlp()
    frozen[-1].requires_grad_(False)
    of_frozen = sngd.fisher_layers(sngd.reconstruct(frozen))
    assert [layer.is_last for layer in of_frozen.values()] == [True]


@pytest.mark.slow
def test_both_ways_in_have_the_same_bounds():
    torch._dynamo.reset()
    config = EXACT.replace(trust_radius=0.2, trust_share=0.3, refresh_every=2)
    first = mlp()
    net = sngd.reconstruct(first, config)
    options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    options["inner_backend"] = "eager"
    compiled = torch.compile(first, backend="sngd", options=options)
    for each in (net, compiled):
        optimizer = SGD(each.parameters(), lr=RATE, momentum=0.9, nesterov=True)
        for step in range(6):
            optimizer.zero_grad()
            (20 * each(batch(step, size=50))).square().sum().backward()
            optimizer.step()
    folded = sngd.fold(net)
    assert apart(folded, first) < 1e-9
