"""Refreshes of parameters in half precision do not add up: what is rounded away is kept."""

import copy
import io
from contextlib import suppress
from itertools import count

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import sngd_compile as sngd
from api import EVERY_STEP, FISHERS, batch, mlp, sgd, train, trained
from api.interruption import StrikeAt
from sngd_compile.fisher.roots.base import copy_root_

HALVES = [torch.bfloat16, torch.float16]
REMAINDERS = ("weight_remainder", "bias_remainder")


def parts() -> nn.Module:
    """A linear layer, a grouped convolution, a normalisation; odd sizes, one without a bias."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 7, bias=False),
        nn.Tanh(),
        nn.Unflatten(1, (1, 7)),
        nn.Conv1d(1, 3, 3),
        nn.GroupNorm(3, 3),
        nn.Flatten(),
        nn.Linear(15, 3),
    )


def hostile(step: int, dtype: torch.dtype) -> Tensor:
    """Draw rows that are far off centre in one step, of few directions or tiny in another."""
    x = batch(step, 9)
    return [x + 7, x[:, :1].expand(-1, 5) * 0.1, x * 1e-3, x][step % 4].to(dtype)


def observed_again(net: nn.Module, step: int, dtype: torch.dtype) -> None:
    net(hostile(step, dtype))
    sngd.refresh_(net)


@torch.no_grad()
def folded(net: nn.Module, exactly: bool = False) -> list[Tensor]:
    """Return `w' R` of each layer in float64; exactly: with what the dtype of w' does not hold."""
    found = []
    parameters = dict(net.named_parameters())
    for name, layer in sngd.fisher_layers(net).items():
        pair = parameters[name], parameters.get(name.removesuffix("weight") + "bias")
        pair = [None if p is None else p.double() for p in pair]
        if exactly:
            kept = layer.remainders
            pair = [p if k is None else p + k for p, k in zip(pair, kept, strict=True)]
        layout, root = layer.layout, layer.new_root(torch.float64)
        copy_root_(root, layer.root_buffers)
        matrices = layout.matrices(pair[0]), None if pair[1] is None else layout.vectors(pair[1])
        w, b = root.fold(*matrices)
        found.append(w.flatten() if b is None else torch.cat([w.flatten(), b.flatten()]))
    return found


def apart(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """Return how far the weight of each layer has moved, in its norm."""
    pairs = zip(one, other, strict=True)
    return torch.stack([(a - b).norm() / a.norm() for a, b in pairs])


@pytest.mark.parametrize(
    ("fisher", "dtype"), [*((fisher, HALVES[0]) for fisher in FISHERS), ("shared", HALVES[1])]
)
def test_refreshes_leave_the_function_within_one_rounding(fisher, dtype):
    config = FISHERS[fisher].replace(ema_decay=0.5)
    net = sngd.reconstruct(parts().to(dtype), config)
    net(hostile(0, dtype)).float().square().mean().backward()
    sngd.refresh_(net)
    start, exactly = folded(net), folded(net, exactly=True)
    moved, steps = [], 24
    for step in range(1, steps):
        net(hostile(step, dtype)).float().square().mean().backward()
        sngd.refresh_(net)
        if not 6 < step < steps - 6:
            moved.append(apart(start, folded(net)))
    # What is kept beside w' is what counts: after all refreshes it is the weight it was.
    assert apart(exactly, folded(net, exactly=True)).max() < 2e-3
    # And the network is one rounding of w' away from it, as after the first few.
    early, late = torch.stack(moved[:6]).amax(0), torch.stack(moved[-6:]).amax(0)
    assert (late <= 1.5 * early + 1e-3).all()
    for name, layer in sngd.fisher_layers(net).items():
        prime = dict(net.named_parameters())[name].detach()
        info = torch.finfo(dtype)
        assert (layer.weight_remainder.abs() <= info.eps * prime.abs() + info.tiny).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_parameters_keep_none(dtype):
    net = trained(mlp().to(dtype).float())
    assert not any(key.endswith("_remainder") for key in net.state_dict())


@pytest.mark.parametrize("refresh_every", [1, 25])
def test_training_reaches_the_loss_of_the_plain_network(refresh_every):
    config = sngd.Config(refresh_every=refresh_every, observe_every=1)
    x = batch(5, 64)
    target = x[:, 1:4].tanh()
    x = x * torch.tensor([3.0, 1.0, 0.3, 0.1, 0.03])

    def loss_after_training(dtype: torch.dtype, config: sngd.Config | None) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
        net = sngd.reconstruct(model, config) if config else model
        optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9)
        for _ in range(100):
            optimizer.zero_grad()
            loss = (net(x.to(dtype)).float() - target).square().mean()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    natural = loss_after_training(torch.bfloat16, config)
    assert natural < loss_after_training(torch.bfloat16, None)
    assert natural < 1.3 * loss_after_training(torch.float32, config)


def rewritten(state: dict[str, Tensor], **options: bool) -> nn.Module:
    fresh = sngd.reconstruct(mlp().bfloat16(), EVERY_STEP)
    fresh.load_state_dict(state, **options)
    return fresh


def through_a_file(net: nn.Module) -> nn.Module:
    torch.save(net, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_parts(net: nn.Module, folder) -> nn.Module:
    dcp.save(net.state_dict(), checkpoint_id=folder, no_dist=True)
    state = sngd.reconstruct(mlp().bfloat16(), EVERY_STEP).state_dict()
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return rewritten(state)


WAYS = {
    "deepcopy": lambda net, folder: copy.deepcopy(net),
    "file": lambda net, folder: through_a_file(net),
    "state": lambda net, folder: rewritten(net.state_dict()),
    "assigned": lambda net, folder: rewritten(copy.deepcopy(net.state_dict()), assign=True),
    "distributed": lambda net, folder: through_parts(net, folder),
}


def start(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    net = sngd.reconstruct(mlp().to(dtype), EVERY_STEP)
    train(net, inputs=lambda step: batch(step).to(dtype))
    return net


@pytest.mark.filterwarnings("ignore:torch.distributed is")
@pytest.mark.parametrize("way", WAYS)
def test_copies_and_checkpoints_go_on_with_it(way, tmp_path):
    net = start()
    assert any(layer.weight_remainder.any() for layer in sngd.fisher_layers(net).values())
    other = WAYS[way](net, tmp_path)
    for one in (net, other):
        observed_again(one, 3, torch.bfloat16)
    assert all(map(torch.equal, net.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("own", [torch.bfloat16, torch.float32])
def test_states_of_other_dtypes_load(own, given, assign):
    source = start(given)
    state = copy.deepcopy(source.state_dict())
    net = start(own)
    net.load_state_dict(state, assign=assign)
    assert net[0].weight_prime.dtype == (given if assign else own)
    expected = sngd.fold(source)[0].weight.to(own).float()
    torch.testing.assert_close(net[0].weight.float(), expected, rtol=0.02, atol=0.02)
    narrow = net[0].weight_prime.dtype.itemsize == 2
    layers = sngd.fisher_layers(net).values()
    assert all((layer.weight_remainder is not None) == narrow for layer in layers)
    observed_again(net, 3, net[0].weight_prime.dtype)


def test_a_state_from_before_remainders_loads():
    net = start()
    state = {k: v for k, v in net.state_dict().items() if not k.endswith(REMAINDERS)}
    other = start()
    other.load_state_dict(state)
    assert torch.equal(other(batch().bfloat16()), net(batch().bfloat16()))
    assert not any(layer.weight_remainder.any() for layer in sngd.fisher_layers(other).values())


def test_what_was_overwritten_in_place_does_not_come_back():
    net = sngd.reconstruct(mlp().bfloat16(), EVERY_STEP)
    for step in range(4):
        observed_again(net, step, torch.bfloat16)
    layers = sngd.fisher_layers(net)
    assert all(bool(layer.remainders[0].any()) for layer in layers.values())
    parameters = [p for name, p in net.named_parameters() if name.endswith("weight")]
    with torch.no_grad():
        for parameter in parameters:
            parameter.data[:, ::2] = 0
    before = folded(net)
    observed_again(net, 5, torch.bfloat16)
    assert apart(before, folded(net)).max() < 0.05
    with torch.no_grad():
        for parameter in parameters:
            parameter.data.zero_()
    observed_again(net, 6, torch.bfloat16)
    assert not any(parameter.any() for parameter in parameters)


def test_it_is_gone_where_the_parameter_is_another():
    net = start()
    layer = sngd.fisher_layers(net)["0.weight"]
    before = net[0].weight.detach().clone()
    net.float()
    observed_again(net, 3, torch.float32)
    assert layer.weight_remainder is None
    torch.testing.assert_close(net[0].weight, before.float(), rtol=0.02, atol=5e-3)
    net.bfloat16()
    assert not layer.weight_remainder.any()
    observed_again(net, 4, torch.bfloat16)
    assert layer.weight_remainder.any()
    net.load_state_dict(mlp().bfloat16().state_dict())
    assert not layer.weight_remainder.any()
    observed_again(net, 5, torch.bfloat16)
    net[0].reset_parameters()
    assert not layer.weight_remainder.any()


def test_an_interrupted_refresh_leaves_it():
    net = start()

    def held() -> list[Tensor]:
        layers = sngd.fisher_layers(net).values()
        return [*net.parameters(), *(b for f in layers for b in (*f.remainders, f.root))]

    for number in count(1, 11):
        before = [tensor.clone() for tensor in held()]
        net(batch(number).bfloat16())
        with StrikeAt(number, KeyboardInterrupt()) as strike, suppress(KeyboardInterrupt):
            sngd.refresh_(net)
        if strike.left > 0:
            break
        # Each layer has all of the old or all of the new.
        pairs = [*zip(held(), before, strict=True)]
        for layer in (pairs[:2] + pairs[4:7], pairs[2:4] + pairs[7:]):
            same = [torch.equal(*pair) for pair in layer]
            assert all(same[:2]) == all(same)
    assert number > 100


def test_averages_of_a_network_follow():
    net = sngd.reconstruct(mlp().bfloat16(), EVERY_STEP)
    average = AveragedModel(net)  # which copies the buffers of both one by one
    optimizer, weights = sgd(net), []
    for step in range(5):
        train(net, optimizer, steps=1, first=step, inputs=lambda step: batch(step).bfloat16())
        average.update_parameters(net)
        weights.append(torch.cat(folded(net)))
    expected = torch.stack(weights).mean(0)
    found = torch.cat(folded(average.module))
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_steps_with_waiting_changes_are_not_lost():
    """A step between two refreshes moves the sum as it moves w'."""
    net = start()
    before = folded(net, exactly=True)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(parameter)  # a step that rounds nothing, and from which none comes back
    expected = folded(net, exactly=True)
    observed_again(net, 1, torch.bfloat16)
    assert apart(expected, folded(net, exactly=True)).max() < 1e-3
    assert apart(before, expected).max() > 0.1


def test_it_keeps_its_exponents_when_the_network_changes_its_halves():
    net = sngd.reconstruct(mlp().half(), EVERY_STEP)
    for change in (nn.Module.half, nn.Module.bfloat16, nn.Module.half):
        observed_again(net, 1, net[0].weight.dtype)
        change(net)
        kept = [layer.remainders[0] for layer in sngd.fisher_layers(net).values()]
        assert {remainder.dtype for remainder in kept} == {torch.bfloat16}
