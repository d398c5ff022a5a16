"""What is written to a folded weight outside of a forward pass is what the network has then."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sngd_compile as sngd
from api import FISHERS, apart, batch, mlp, sgd, train, trained
from sngd_compile.modules.writable_weight import WritableWeight

pytestmark = pytest.mark.usefixtures("float64")


@torch.no_grad()
def scaled(net):
    net[0].weight *= 2
    net[0].bias += 1


@torch.no_grad()
def indexed(net):
    net[0].weight[:, 1] = 3
    net[0].weight[2][0] = -1


@torch.no_grad()
def through_views(net):
    net[0].weight.t().mul_(2)
    net[0].weight.unbind(0)[1].add_(1)
    net[2].weight.view(-1)[3:5].zero_()


def given_to_functions(net):
    torch.manual_seed(3)
    nn.init.xavier_normal_(net[0].weight)
    nn.init.zeros_(net[2].bias)
    torch.mul(torch.ones(4, 5), 2, out=net[0].weight.data)


def replaced(net):
    net[0].weight.data = torch.arange(20.0).view(4, 5)


WRITTEN = {
    "clamped": lambda net: net[0].weight.data.clamp_(-0.2, 0.2),
    "bias copied into": lambda net: net[0].bias.data.copy_(torch.arange(4.0)),
    "a detached alias": lambda net: net[0].weight.detach().mul_(3),
    "initialised by apply": lambda net: net.apply(
        lambda m: nn.init.ones_(m.weight) if isinstance(m, nn.Linear) else None
    ),
    "augmented": scaled,
    "indexed": indexed,
    "views": through_views,
    "functions": given_to_functions,
    "data": replaced,
}


@pytest.mark.parametrize("write", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("config", FISHERS.values(), ids=FISHERS)
def test_a_written_weight_is_that_of_the_plain_network(config, write):
    net = trained(config=config)
    model = sngd.fold(net)
    write(net)
    write(model)
    for name, weight in sngd.fold(net).state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-11, atol=1e-11)


def test_training_goes_on_from_what_was_written():
    net = trained()
    before = sngd.fisher_layers(net)["0.weight"].root
    nn.init.constant_(net[0].weight, 0.5)
    assert torch.equal(sngd.fisher_layers(net)["0.weight"].root, before)
    train(net)
    assert not torch.allclose(net[0].weight, torch.full((4, 5), 0.5))


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (nn.Sequential(nn.Conv2d(2, 4, 3, groups=2)), ["0.weight", "0.bias"]),
        (nn.Sequential(nn.Embedding(6, 3)), ["0.weight"]),
        (nn.Sequential(nn.BatchNorm1d(5)), ["0.weight", "0.bias"]),
        (nn.LSTM(5, 4), ["weight_hh_l0", "bias_ih_l0"]),
    ],
    ids=["grouped convolution", "embedding", "BatchNorm", "LSTM"],
)
def test_other_layers(model, names):
    net = sngd.reconstruct(model)
    for name in names:
        owner, attribute = (net, name) if "." not in name else (net[0], name[2:])
        value = torch.randn_like(getattr(owner, attribute))
        getattr(owner, attribute).data.copy_(value)
        torch.testing.assert_close(sngd.fold(net).get_parameter(name).detach(), value)


@pytest.mark.parametrize("config", FISHERS.values(), ids=FISHERS)
def test_the_gradient_is_that_of_the_plain_network_and_can_be_written_to(config):
    net = trained(config=config)
    model = sngd.fold(net)
    for each in (net, model):
        each.zero_grad()
        each(batch(5)).square().mean().backward()
        each[0].weight.grad[1] = 0
        each[0].bias.grad.mul_(2)
        each[2].weight.grad.data.clamp_(-1e-3, 1e-3)
    for index in (0, 2):
        # They pass through the root together: what rounds is as large as the largest of both.
        largest = max(float(p.grad.abs().max()) for p in model[index].parameters())
        for name in ("weight", "bias"):
            ours, plain = (getattr(each[index], name).grad for each in (net, model))
            torch.testing.assert_close(ours, plain, rtol=0, atol=1e-11 * largest)


def test_no_gradient_is_none_and_half_of_one_is_whole():
    net = trained()
    net.zero_grad()
    assert net[0].weight.grad is None
    net[0].weight_prime.grad = torch.ones(4, 5)
    assert net[0].bias.grad.shape == (4,)


def test_a_gradient_that_is_replaced_is_refused():
    net = trained()
    with pytest.raises(sngd.ModelError, match=r"write to it in place, or .*weight_prime.grad"):
        net[0].weight.grad = torch.zeros(4, 5)


FREEZE = {
    "method": lambda weight: weight.requires_grad_(False),
    "by name": lambda weight: weight.requires_grad_(requires_grad=False),
    "attribute": lambda weight: setattr(weight, "requires_grad", False),
}


@pytest.mark.parametrize("freeze", FREEZE.values(), ids=FREEZE)
def test_a_weight_is_frozen_and_thawed_by_its_attribute(freeze):
    net = trained()
    freeze(net[0].weight)
    frozen = sngd.fold(net)[0].weight.detach()
    train(net, steps=4)
    torch.testing.assert_close(sngd.fold(net)[0].weight.detach(), frozen, rtol=1e-12, atol=1e-12)
    assert not net[0].weight_prime.requires_grad
    net[0].weight_prime.requires_grad_()
    assert net[0].weight.requires_grad


def test_a_penalty_on_weights_reaches_them():
    net = sngd.reconstruct(mlp())
    optimizer = sgd(net)
    penalty = net[0].weight.square().sum() + F.softplus(net[0].weight[0]).sum()
    (net(batch()).mean() * 0 + penalty).backward()
    expected = 2 * net[0].weight.detach()
    expected[0] += net[0].weight.detach()[0].sigmoid()
    torch.testing.assert_close(net[0].weight.grad, expected)
    optimizer.step()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo's, of any tensor with a history
def test_a_compiled_function_takes_a_weight_and_writes_to_it():
    @torch.compile(backend="aot_eager")
    def penalty(weight):
        return weight.t().square().sum()

    @torch.compile(backend="aot_eager")
    def clamp_(weight):
        with torch.no_grad():
            weight.clamp_(-0.05, 0.05)

    net = trained()
    weight = sngd.fold(net)[0].weight.detach()
    torch.testing.assert_close(penalty(net[0].weight).detach(), weight.square().sum())
    clamp_(net[0].weight)
    torch.testing.assert_close(sngd.fold(net)[0].weight.detach(), weight.clamp(-0.05, 0.05))


def test_other_modes_and_views():
    net = trained()
    with torch.inference_mode():
        assert net[0].weight.norm() > 0
    assert net[0].weight._base is None or type(net[0].weight._base) is torch.Tensor
    rows = torch.vmap(torch.sum)(net[0].weight.detach())
    torch.testing.assert_close(rows, sngd.fold(net)[0].weight.detach().sum(1))
    train(net, steps=1)
    assert net[0].weight.grad.shape == (4, 5)
    assert net[0].weight[0].grad is None


def test_numbers_that_are_taken_out_stay_what_they_are():
    net = trained()
    taken = net[0].weight.detach().clone(), copy.deepcopy(net[0].weight.detach())
    file = io.BytesIO()
    torch.save(net[0].weight.detach(), file)
    file.seek(0)
    taken = (*taken, torch.load(file, weights_only=True), net[0].weight + 0)
    assert [type(value) for value in taken] == [torch.Tensor] * 4
    before = sngd.fold(net)
    with torch.no_grad():
        for value in taken:
            value.zero_()
    assert apart(net, before) < 1e-12
    assert repr(net[0].bias).startswith("tensor(")


def test_it_compares_with_parameters_and_survives_what_writes_nothing():
    net, model = sngd.reconstruct(mlp()), mlp()
    weight = net[0].weight
    assert type(weight) is WritableWeight
    model[0].weight.data.copy_(weight)
    torch.testing.assert_close(net[0].weight, model[0].weight)
    assert weight.shape == (4, 5)
    assert weight.numpy(force=True).shape == (4, 5)
