"""Half precision on a GPU: statistics stay in float32, and what overflows is skipped."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sngd_compile as sngd
from device import DEVICE, SETTING, batch, on_both, train
from theorem.networks import MLP, ConvNet

NETWORKS = [MLP, ConvNet]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("network", NETWORKS)
def test_autocast(network, dtype):
    host, net = on_both(network())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    losses = []
    for step in range(7):
        inputs, labels = (t.to(DEVICE) for t in batch(network.input_shape, step, torch.float32))
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=dtype):
            loss = F.cross_entropy(net(inputs), labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    assert losses == pytest.approx(clipped(host, network), rel=0.05)
    layers = sngd.fisher_layers(net).values()
    assert {layer.factor.dtype for layer in layers} == {torch.float32}
    assert all(bool(layer.root.isfinite().all()) for layer in layers)


def clipped(net: nn.Module, network: type[nn.Module]) -> list[float]:
    """Train on the host, in float32, as above."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(7):
        inputs, labels = batch(network.input_shape, step, torch.float32)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(inputs), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_scaled_step_that_overflows_is_skipped():
    net = on_both(MLP())[1]
    train(net, MLP.input_shape, 3)
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**127)
    with torch.autocast("cuda", dtype=torch.float16):
        loss = net(batch(MLP.input_shape, 0, torch.float32)[0].to(DEVICE)).square().sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    weights = {n: p.detach() for n, p in net.named_parameters()}
    torch.testing.assert_close(weights, {name: before[name] for name in weights}, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_channels_last_images(dtype):
    model = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 3, 3, 2))
    model = model.to(DEVICE, dtype)
    nets = [sngd.reconstruct(copy.deepcopy(model), SETTING) for _ in range(2)]
    nets[1].to(memory_format=torch.channels_last)
    x = torch.randn(5, 16, 19, 17, device=DEVICE).to(dtype)
    for net, images in zip(nets, (x, x.to(memory_format=torch.channels_last)), strict=True):
        net(images)
        sngd.refresh_(net)
    factors = [sngd.fisher_layers(net)["0.weight"].factor for net in nets]
    torch.testing.assert_close(*factors, rtol=1e-5, atol=1e-5)
    exact = unfolded_moment(x.double())
    torch.testing.assert_close(factors[0].double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 9, 3), nn.Linear(25, 9)])
def test_tf32_reaches_the_network_alone(layer):
    x = torch.randn(33, 6, 5, 5, device=DEVICE)
    model, found = copy.deepcopy(layer).to(DEVICE), []
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("high", "highest"):
            torch.set_float32_matmul_precision(precision)
            net = sngd.reconstruct(model, SETTING)
            for factor in (1.0, 3.0, 0.5):
                net(x * factor if isinstance(layer, nn.Conv2d) else x.flatten(2) * factor)
                sngd.refresh_(net)
            found.append(net.state_dict())
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def unfolded_moment(x: torch.Tensor) -> torch.Tensor:
    """Return the mean of the outer products of all patches with a 1."""
    rows = F.unfold(x, 3, padding=1).mT.flatten(0, 1)
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    return rows.T @ rows / len(rows)
