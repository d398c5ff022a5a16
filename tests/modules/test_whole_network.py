"""One forward pass of a network folds each weight once, small ones together."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sngd_compile as sngd
from sngd_compile.fisher import forward_pass, reparameterise
from sngd_compile.fisher.weight_map import visibly_mapped

pytestmark = pytest.mark.usefixtures("float64")
X = torch.randn(20, 5, dtype=torch.float64)


class Odd(nn.Module):
    """Uses one layer twice, one not always, and one in a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Linear(5, 6), nn.Linear(6, 6)
        self.norm, self.last = nn.LayerNorm(6), nn.Linear(6, 3, bias=False)
        self.spare, self.reentrant = nn.Linear(3, 3), None

    def forward(self, x: Tensor, spare: bool = False) -> Tensor:
        """Compute three numbers a row."""
        x = self.twice(torch.tanh(self.twice(torch.tanh(self.first(x)))))
        if self.reentrant is not None:
            x = checkpoint(self.norm, x, use_reentrant=self.reentrant)
        else:
            x = self.norm(x)
        out = self.last(x)
        return self.spare(out) if spare else out


@pytest.fixture
def net() -> nn.Module:
    """A network with roots that are not the identity, after a pass of which others fold ahead."""
    made = sngd.reconstruct(Odd())
    made(X, spare=True)
    sngd.refresh_(made)
    made(X, spare=True)
    made(X)
    return made


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect how many weights each node folds."""
    sizes: list[int] = []
    original = forward_pass.fold_together

    def counted(layers, weights, biases):
        sizes.append(len(layers))
        return original(layers, weights, biases)

    monkeypatch.setattr(forward_pass, "fold_together", counted)
    return sizes


def gradients(net: nn.Module) -> dict[str, Tensor | None]:
    """Return the gradients by name."""
    return {name: p.grad for name, p in net.named_parameters()}


def expected(net: nn.Module, loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor | None]:
    """Return what the gradients of w' and b' are, from those of the ordinary network."""
    plain = sngd.fold(net)
    loss(plain).backward()
    ordinary, found = gradients(plain), {}
    for name, layer in sngd.fisher_layers(net).items():
        weight, bias = name, name.removesuffix("weight") + "bias"
        if ordinary[weight] is None:
            found |= {weight: None, bias: None}
            continue
        pair = ordinary[weight], ordinary.get(bias)
        found[weight], found[bias] = visibly_mapped(
            "to_prime", layer.root_buffers, layer.layout, *pair
        )
    return {name: found[name] for name in ordinary}


def assert_gradients(net: nn.Module, wanted: dict[str, Tensor | None], times: int = 1) -> None:
    """Compare gradients, None included."""
    for name, gradient in gradients(net).items():
        want = wanted[name]
        assert (gradient is None) == (want is None), name
        if want is not None:
            torch.testing.assert_close(gradient, times * want, rtol=1e-11, atol=1e-13)


def loss_of(net: nn.Module) -> Tensor:
    """Return a loss that no other loss is a multiple of."""
    return net(X).square().sum()


def test_small_weights_are_folded_in_one_node(net, folds):
    net(X)
    assert folds == [3 + 1]  # what the last pass did not use is not folded
    net(X, spare=True)
    assert folds[1:] == [4, 1]
    net(X, spare=True)
    assert folds[3:] == [5]


def test_gradients_are_those_of_the_ordinary_network(net):
    loss_of(net).backward()
    assert_gradients(net, expected(net, loss_of))


def test_a_weight_that_is_not_used_keeps_no_gradient(net):
    net(X, spare=True)  # so that the next pass folds it ahead
    loss_of(net).backward()
    assert net.spare.weight_prime.grad is None
    assert net.spare.bias_prime.grad is None
    assert_gradients(net, expected(net, loss_of))


def test_halves_of_a_pair_count_as_zeros(net):
    def bias_alone(some: nn.Module) -> Tensor:
        return F.linear(torch.zeros(2, 3), some.spare.weight, some.spare.bias).square().sum()

    bias_alone(net).backward()
    assert_gradients(net, expected(net, bias_alone))


def test_a_graph_can_be_walked_twice(net):
    loss = loss_of(net)
    loss.backward(retain_graph=True)
    loss.backward()
    assert_gradients(net, expected(net, loss_of), times=2)


def test_gradients_that_come_after_a_refresh_are_those_of_the_new_coordinates(net):
    net(X + 1)
    before = copy.deepcopy(sngd.fisher_layers(net)["first.weight"].root)
    loss, wanted = loss_of(net), expected(net, loss_of)
    sngd.refresh_(net)
    assert not torch.equal(before, sngd.fisher_layers(net)["first.weight"].root)
    loss.backward()
    moved = expected(net, loss_of)
    assert not torch.allclose(wanted["first.weight"], moved["first.weight"])
    assert_gradients(net, moved)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_regions_give_the_same_gradients(net, reentrant):
    wanted = expected(net, loss_of)
    net.reentrant = reentrant
    for _ in range(2):
        net.zero_grad()
        loss_of(net).backward()
        assert_gradients(net, wanted)


def test_second_derivatives_go_through(net):
    def penalty(some: nn.Module) -> Tensor:
        x = X.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss_of_input(some, x), x, create_graph=True)
        return slope.square().sum()

    def loss_of_input(some: nn.Module, x: Tensor) -> Tensor:
        return some(x).square().sum()

    penalty(net).backward()
    assert_gradients(net, expected(net, penalty))


def test_second_derivatives_by_weights_go_through(net):
    def curvature(some: nn.Module) -> Tensor:
        held = [p for n, p in some.named_parameters() if not n.startswith("spare")]
        slopes = torch.autograd.grad(loss_of(some), held, create_graph=True)
        return sum(slope.square().sum() for slope in slopes)

    curvature(net).backward()
    found = gradients(net)
    for p in net.parameters():
        p.grad = None
    # By differences: w' moves along one direction.
    torch.manual_seed(1)
    step, direction = 1e-6, {n: torch.randn_like(p) for n, p in net.named_parameters()}
    values = []
    for sign in (1, -1):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for name, p in moved.named_parameters():
                p.add_(direction[name], alpha=sign * step)
        values.append(curvature(moved).item())
    slope = sum(float((g * direction[n]).sum()) for n, g in found.items() if g is not None)
    assert abs((values[0] - values[1]) / (2 * step) - slope) < 1e-5 * abs(slope)


@pytest.mark.parametrize("recording", [True, False])
def test_writes_between_two_passes_are_seen(net, recording):
    with torch.set_grad_enabled(recording):
        for write in (
            lambda p: p.data.mul_(2),
            lambda p: p.detach().mul_(2),
            lambda p: setattr(p, "data", p.data * 3),
        ):
            before = net(X)
            for p in net.parameters():
                write(p)
            assert not torch.allclose(net(X), before)
            torch.testing.assert_close(net(X), sngd.fold(net)(X))


def test_writes_within_a_pass_are_seen(net):
    def scale(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            module.weight_prime.mul_(2)

    wanted = sngd.fold(net)
    wanted.last.weight.data *= 2
    net.last.register_forward_pre_hook(scale)
    torch.testing.assert_close(net(X), wanted(X))


def test_other_parameters_are_seen(net):
    others = {name: p.detach() * 2 for name, p in net.named_parameters()}
    doubled = copy.deepcopy(net)
    doubled.load_state_dict({**net.state_dict(), **others})
    found = torch.func.functional_call(net, others, (X,))
    torch.testing.assert_close(found, doubled(X))


def test_a_frozen_weight_asks_for_no_gradient(net, monkeypatch):
    seen = {}
    net.last.weight_prime.requires_grad_(False)

    def noted(input, weight, bias=None):
        seen[tuple(weight.shape)] = weight.requires_grad
        return original(input, weight, bias)

    original = reparameterise.F.linear
    net(X)
    monkeypatch.setattr(reparameterise.F, "linear", noted)
    loss_of(net).backward()
    assert seen[3, 6] is False
    assert seen[6, 5] is True
    assert net.last.weight_prime.grad is None


def test_gradients_switched_on_within_a_pass_are_there(net):
    def switched(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        torch.set_grad_enabled(True)

    net.last.register_forward_pre_hook(switched)
    with torch.no_grad():
        out = net(X)
    assert out.requires_grad


def test_a_pass_that_fails_leaves_nothing_open(net, folds):
    with pytest.raises(RuntimeError):
        net(torch.ones(2, 9))
    assert not net.first.weight_fisher.ties.forward_pass.is_open
    torch.testing.assert_close(net(X), sngd.fold(net)(X))


def test_a_part_of_a_network_leaves_its_pass_alone(folds):
    inner = sngd.reconstruct(nn.Sequential(nn.Linear(5, 5)))
    outer = nn.Sequential(inner, nn.Linear(5, 4))
    outer(X)
    outer(X)
    assert folds == [1, 1]


@pytest.mark.parametrize("way", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_and_files_fold_together_too(net, folds, way):
    other = way(net)
    other(X)
    other(X)
    assert folds[-1] == 4
    torch.testing.assert_close(other(X), net(X), rtol=0, atol=0)


def test_the_ordinary_network_has_no_hooks_left(net):
    for folded in (sngd.fold(net), sngd.fold_(net)):
        assert not folded._forward_hooks
        assert not folded._forward_pre_hooks
        assert not folded._forward_hooks_always_called
        assert not folded._load_state_dict_pre_hooks


def test_large_weights_are_folded_one_by_one(monkeypatch, net, folds):
    monkeypatch.setattr(forward_pass, "LARGEST_FOLDED_AHEAD", 30)
    net(X)
    assert sorted(folds) == [1, 1, 3]  # twice is larger: its two uses are two folds
    loss_of(net).backward()
    assert_gradients(net, expected(net, loss_of))


def test_a_network_is_not_kept_alive():
    made = sngd.reconstruct(nn.Linear(5, 3))  # its only reconstructed module is itself
    made(X).sum().backward()
    reference = weakref.ref(made)
    del made
    gc.collect()
    assert reference() is None


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_traced_network_can_be_saved(net, tmp_path):
    traced = torch.jit.trace(net.eval(), X)
    traced.save(tmp_path / "traced.pt")
    loaded = torch.jit.load(tmp_path / "traced.pt")
    torch.testing.assert_close(loaded(X + 1), net(X + 1))


def test_a_layer_keeps_no_other_layer_alive():
    made = sngd.reconstruct(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)))
    for _ in range(2):
        made(X).sum().backward()
    kept, other = made[0].weight_fisher, weakref.ref(made[1].weight_fisher)
    del made
    gc.collect()
    assert other() is None
    assert kept.size == 6
