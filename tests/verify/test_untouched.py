"""What is verified stays as it was, to the last bit, and trains on as if nothing had been."""

import copy
import random

import pytest
import torch

import sngd_compile as sngd
from sngd_compile.explain import fisher_layers
from verify import NETWORKS, failing, made
from verify.test_laws import trained


def numbers_of(net, optimizer):
    """All tensors that belong to a network and its optimizer, copied."""
    tensors = dict(net.state_dict())
    tensors |= {f"{name}.grad": p.grad for name, p in net.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{index}.{key}": value for key, value in state.items()}
    for name, layer in fisher_layers(net).items():
        tensors |= {f"{name}.{key}": value for key, value in layer.named_buffers()}
        tensors[f"{name}.gate"] = layer.schedule.gate
    return {key: None if v is None else torch.as_tensor(v).clone() for key, v in tensors.items()}


def rest_of(net):
    """What is no tensor: modes, classes, settings, hooks, copies that are known."""
    modules = [
        (name, type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in net.named_modules()
    ]
    layers = [
        (layer.config, layer.schedule.steps, layer.schedule.observed_steps, len(layer.ties.copies))
        for layer in fisher_layers(net).values()
    ]
    return modules, layers, [p.requires_grad for p in net.parameters()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_untouched(name, training):
    net, optimizer, batch = trained(name)
    net.train(training)
    if batch.is_floating_point():
        batch.requires_grad_()
    kept = batch.detach().clone()
    before, rest = numbers_of(net, optimizer), rest_of(net)
    states = torch.get_rng_state(), random.getstate()
    assert sngd.verify(net, batch).ok
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert rest_of(net) == rest
    after = numbers_of(net, optimizer)
    assert list(after) == list(before)
    for key, value in before.items():
        assert (value is None) == (after[key] is None)
        assert value is None or torch.equal(after[key], value), key
    assert torch.equal(batch.detach(), kept)
    assert batch.grad is None


def test_a_plain_model_is_untouched():
    model, batch = made("conv")
    model(batch).sum().backward()
    before = copy.deepcopy([model.state_dict(), [p.grad for p in model.parameters()]])
    assert sngd.verify(model, batch).ok
    assert all(type(m).__module__.startswith("torch.nn") for m in model.modules())
    pairs = zip(model.state_dict().items(), before[0].items(), strict=True)
    assert all(a == b and torch.equal(one, other) for (a, one), (b, other) in pairs)
    grads = zip(model.parameters(), before[1], strict=True)
    assert all(torch.equal(p.grad, grad) for p, grad in grads)


def test_training_goes_on_as_without():
    ends = []
    for verified in (False, True):
        net, optimizer, batch = trained("mlp")
        if verified:
            assert not failing(sngd.verify(net, batch))
        for _ in range(8):
            optimizer.zero_grad()
            net(batch).square().mean().backward()
            optimizer.step()
        ends.append(net.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_the_inputs_may_be_written_to_by_the_forward():
    class Writes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(5, 3)

        def forward(self, batch):
            batch["x"].add_(1.0)
            return self.layer(batch["x"])

    batch = {"x": torch.zeros(4, 5)}
    assert sngd.verify(Writes(), batch).ok
    assert not batch["x"].any()


def test_within_no_grad_and_inference_mode():
    model, batch = made("mlp")
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert sngd.verify(model, batch).ok
