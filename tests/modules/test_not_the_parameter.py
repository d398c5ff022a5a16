"""`layer.weight` is computed: what would hang on that tensor works or is refused by name."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sngd_compile as sngd
from api import FISHERS, apart, batch, train, trained

pytestmark = pytest.mark.usefixtures("float64")

every_fisher = pytest.mark.parametrize("config", FISHERS.values(), ids=FISHERS)
NAMES = [(0, "weight"), (0, "bias"), (2, "weight"), (2, "bias")]


def weights_of(net: nn.Module) -> list[torch.Tensor]:
    """Read the attributes."""
    return [getattr(net[index], name) for index, name in NAMES]


def loss(net: nn.Module) -> torch.Tensor:
    """Return a loss that has a penalty on a weight in it."""
    return net(batch(3)).square().mean() + net[0].weight.pow(3).sum()


@every_fisher
def test_gradients_by_weights_are_those_of_the_plain_network(config):
    net = trained(config=config)
    plain = sngd.fold(net)
    x = batch(1).requires_grad_()
    for wanted in (weights_of, lambda n: [n[2].weight, x, n[0].bias], lambda n: n[0].weight):
        ours = torch.autograd.grad(loss(net) + net(x).sum(), wanted(net))
        expected = torch.autograd.grad(loss(plain) + plain(x).sum(), wanted(plain))
        for one, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    assert all(p.grad is None or not p.grad.any() for p in sngd.fold(net).parameters())


def test_the_gradient_of_the_tensor_itself():
    weight = trained()[0].weight
    (gradient,) = torch.autograd.grad(weight.square().sum(), weight)
    torch.testing.assert_close(gradient, 2 * weight.detach())


@pytest.mark.skipif(torch.__version__ < "2.13", reason="autograd takes no dictionary there")
def test_gradients_by_name():
    net = trained()
    by_name = torch.autograd.grad(loss(net), {"a": net[0].weight})
    torch.testing.assert_close(by_name["a"], torch.autograd.grad(loss(net), net[0].weight)[0])


@every_fisher
def test_second_derivatives_and_batches_of_gradients(config):
    net = trained(config=config)
    plain = sngd.fold(net)
    found = []
    for each in (net, plain):
        given = torch.autograd.grad(loss(each), weights_of(each), create_graph=True)
        norm = sum(gradient.square().sum() for gradient in given)
        found.append(torch.autograd.grad(norm, weights_of(each)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    found = [
        torch.autograd.grad(
            each.eval()(batch(2)),
            weights_of(each),
            torch.stack([torch.ones(7, 3), torch.eye(7, 3)]),
            is_grads_batched=True,
        )
        for each in (net, plain)
    ]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@every_fisher
def test_a_backward_pass_for_some_inputs_adds_to_them_alone(config):
    net = trained(config=config)
    plain = sngd.fold(net)
    for each in (net, plain):
        each.zero_grad()
        for _ in range(2):
            torch.autograd.backward(loss(each), inputs=[each[0].weight, each[2].bias])
        loss(each).backward(inputs=[each[0].weight])
    for index, name in ((0, "weight"), (2, "bias")):
        ours, theirs = (getattr(each[index], name).grad for each in (net, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(net[0].bias.grad, torch.zeros(4), rtol=0, atol=1e-10)


def test_what_is_unused_has_no_gradient():
    net = trained()
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(sngd.ModelError, match=r"0.weight: no output .*weight_prime"):
        torch.autograd.grad(x.sum(), net[0].weight)
    assert torch.autograd.grad(x.sum(), net[0].weight, allow_unused=True) == (None,)
    (zeros,) = torch.autograd.grad(x.sum(), net[0].weight, materialize_grads=True)
    assert torch.equal(zeros, torch.zeros(4, 5))


def test_gradients_where_a_bias_is_apart_or_frozen():
    net = trained()
    net[0].bias.requires_grad_(False)
    with pytest.raises(sngd.ModelError, match=r"0.weight: .*frozen"):
        torch.autograd.grad(loss(net), net[0].weight)
    train(net)
    plain = sngd.fold(net)
    for wanted in (lambda n: [n[0].weight, n[2].bias], lambda n: n[0].weight):
        ours, theirs = (torch.autograd.grad(loss(each), wanted(each)) for each in (net, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_marks_stand_on_the_parameter():
    net = trained()
    parameters = dict(net.named_parameters())
    for index, name in NAMES:
        parameter = parameters[f"{index}.{name}"]
        getattr(net[index], name).no_decay = index
        assert parameter.no_decay == getattr(net[index], name).no_decay == index
        parameter.group = {"of": name}
        assert getattr(net[index], name).group is parameter.group
        del getattr(net[index], name).group
        assert not hasattr(parameter, "group")
        assert not hasattr(getattr(net[index], name), "group")
        assert not hasattr(getattr(net[index], name).t(), "no_decay")
    assert copy.deepcopy(net)[2].weight.shape == (3, 4)
    train(net)


REFUSED = {
    "hook": (lambda net: net[0].weight.register_hook(print), "0.weight"),
    "hook on a bias": (lambda net: net[2].bias.register_hook(print), "2.bias"),
    "hook after": (lambda net: net[0].weight.register_post_accumulate_grad_hook(print), "0.weight"),
    "several hooks": (
        lambda net: torch.autograd.graph.register_multi_grad_hook([net[0].weight], print),
        "0.weight",
    ),
    "an edge": (lambda net: torch.autograd.graph.get_gradient_edge(net[0].weight), "0.weight"),
    "SGD": (lambda net: torch.optim.SGD([net[0].weight, net[2].weight], lr=0.1), "0.weight"),
    "groups": (
        lambda net: torch.optim.AdamW([{"params": [net[0].bias], "lr": 0.1}]),
        "0.bias",
    ),
    "a set": (lambda net: {net[0].weight}, "0.weight"),
    "a key": (lambda net: {net[0].bias: 1}, "0.bias"),
    "a tie": (lambda net: setattr(net[0], "weight", net[2].weight), "2.weight"),
    "a tie with a plain layer": (
        lambda net: setattr(nn.Linear(3, 4), "weight", net[2].weight),
        "2",
    ),
    "a further name": (lambda net: setattr(net, "kept", net[0].bias), "0.bias"),
    "registered": (lambda net: net.register_parameter("kept", net[0].bias), "0.bias"),
    "a parameter of it": (lambda net: nn.Parameter(net[0].weight), "0.weight"),
}


@pytest.mark.parametrize(("keep", "name"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_lost_is_refused_by_name(keep, name):
    net = trained()
    before = sngd.fold(net)
    with pytest.raises(sngd.ModelError, match=rf"^{name}.*_prime"):
        keep(net)
    assert apart(net, before) < 1e-12
    train(net)


def test_a_parameter_is_tied_before_reconstruct():
    net = trained(nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)))
    with pytest.raises(sngd.ModelError, match=r"0.weight: .* of 2.weight.*sngd.fold"):
        net[0].weight = net[2].weight_prime
    train(net)


def test_ties_that_are_there_may_be_tied_again():
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    net = trained(model)
    before, root = sngd.fold(net), sngd.fisher_layers(net)["0.weight"].root
    net[2].weight = net[0].weight
    net[2].weight = net.get_parameter("0.weight")
    assert apart(net, before) == 0.0
    assert torch.equal(sngd.fisher_layers(net)["0.weight"].root, root)


def test_parameters_are_found_by_name():
    net = trained()
    for name, parameter in net.named_parameters():
        assert net.get_parameter(name) is parameter
    assert not isinstance(net[0].weight, nn.Parameter)
    assert net[0].weight.is_leaf is False
    assert net[0].weight.retain_grad() is None


def resized(net, way):
    larger = torch.zeros(9, 5)
    if way == "data":
        net[0].weight.data = larger
    else:
        net[0].weight = nn.Parameter(larger)


@pytest.mark.parametrize("way", ["data", "parameter"])
def test_another_shape_is_refused_and_changes_nothing(way):
    net = trained()
    before = sngd.fold(net)
    with pytest.raises(sngd.ModelError, match="fold"):
        resized(net, way)
    assert apart(net, before) < 1e-12
    train(net)


def test_forwards_and_functions_stay_as_they_are():
    torch._dynamo.reset()
    net = trained()
    plain = sngd.fold(net)
    rows = torch.vmap(lambda x: F.linear(x, net[0].weight, net[0].bias))(batch())
    torch.testing.assert_close(rows, plain[0](batch()))
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch()), plain(batch()))
    state = {name: p.detach() for name, p in net.named_parameters()}
    called = torch.func.functional_call(net, state, (batch(),))
    torch.testing.assert_close(called, plain(batch()))
