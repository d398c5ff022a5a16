"""Moving and casting a network: the weights follow, the statistics never narrow."""

import pytest
import torch
from torch import nn

import sngd_compile as sngd
import sngd_kernels
from api import EVERY_STEP, apart, batch, mlp, sgd, train, trained


def dtypes(net):
    return {
        buffer.dtype
        for layer in sngd.fisher_layers(net).values()
        for buffer in (layer.sum, layer.factor, *layer.root_buffers.buffers())
    }


NARROW = {
    "bfloat16": lambda net: net.to(torch.bfloat16),
    "bfloat16 method": lambda net: net.bfloat16(),
    "half": lambda net: net.half(),
    "type": lambda net: net.type(torch.float16),
}


@pytest.mark.parametrize("kind", NARROW)
def test_narrowing_keeps_the_statistics(kind):
    net = trained()
    reference = net(batch())
    before = [layer.factor.clone() for layer in sngd.fisher_layers(net).values()]
    net = NARROW[kind](net)
    narrow = net[0].weight_prime.dtype
    assert narrow.itemsize == 2
    assert dtypes(net) == {torch.float32}
    after = [layer.factor for layer in sngd.fisher_layers(net).values()]
    assert all(map(torch.equal, before, after))
    outputs = net(batch().to(narrow))
    assert outputs.dtype == net[0].weight.dtype == net[0].bias.dtype == narrow
    torch.testing.assert_close(outputs.float(), reference, rtol=0.05, atol=0.03)
    train(net, inputs=lambda step: batch(step).to(narrow))
    assert dtypes(net) == {torch.float32}
    assert apart(net, sngd.fold(net), batch().to(narrow)) < 0.02


def test_widening_widens_all():
    net = trained()
    reference = net(batch())
    net.double()
    assert dtypes(net) == {torch.float64}
    assert net[0].weight.dtype == torch.float64
    torch.testing.assert_close(net(batch().double()).float(), reference)
    train(net, inputs=lambda step: batch(step).double())
    assert apart(net, sngd.fold(net), batch().double()) < 1e-12


def test_there_and_back():
    net = trained().double().float()
    assert dtypes(net) == {torch.float64}
    assert net[0].weight.dtype == torch.float32
    reference = net(batch())
    train(net)
    assert net(batch()).dtype == reference.dtype == torch.float32
    assert apart(net, sngd.fold(net)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_models_of_every_dtype_train(dtype):
    def inputs(step):
        return batch(step).to(dtype)

    net = sngd.reconstruct(mlp().to(dtype), EVERY_STEP)

    def loss():
        return float(net(inputs(0)).detach().float().square().mean())

    first = loss()
    train(net, sgd(net), steps=30, inputs=inputs)
    assert dtypes(net) == {torch.promote_types(dtype, torch.float32)}
    assert loss() < 0.7 * first
    plain = sngd.fold(net)
    assert {p.dtype for p in plain.parameters()} == {dtype}
    assert apart(net, plain, inputs(1)) <= 4 * torch.finfo(dtype).eps


def test_folding_rounds_once():
    net = trained().bfloat16()
    weight = net[0].weight_prime.double()
    root = sngd.fisher_layers(net)["0.weight"].root.double()
    joined = torch.cat([weight, net[0].bias_prime.double()[:, None]], 1) @ root
    expected = joined[:, :-1].bfloat16()
    difference = (sngd.fold(net)[0].weight != expected).sum()
    assert int(difference) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_close_to_the_plain_model(dtype):
    model = nn.Sequential(mlp(), nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 2))
    net = trained(model)
    plain = sngd.fold(net)
    with torch.autocast("cpu", dtype=dtype):
        outputs, expected = net(batch()), plain(batch())
        assert outputs.dtype == expected.dtype == dtype
        outputs.float().square().mean().backward()
    torch.testing.assert_close(outputs.float(), expected.float(), rtol=0.02, atol=0.01)
    assert dtypes(net) == {torch.float32}
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())


def test_mixed_dtypes_in_one_model():
    class Mixed(nn.Module):
        """A float32 layer before a float64 one."""

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3, dtype=torch.float64)

        def forward(self, x):
            return self.last(self.first(x).double())

    net = trained(Mixed())
    assert dtypes(net) == {torch.float32, torch.float64}
    assert apart(net, sngd.fold(net)) < 1e-6


HALVES = [torch.bfloat16, torch.float16]
LAYERS = [
    (lambda: nn.Linear(6, 3), (9, 6)),
    (lambda: nn.Conv2d(6, 4, 2, groups=2), (4, 6, 5, 3)),
    (lambda: nn.Conv1d(6, 3, 1, stride=2, bias=False), (4, 6, 5)),
]


@pytest.mark.parametrize("fisher", ["shared", "diagonal", "block"])
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@pytest.mark.parametrize("dtype", HALVES)
def test_halves_are_multiplied_as_they_are(dtype, layer, shape, fisher, monkeypatch):
    config = EVERY_STEP.replace(fisher=fisher, block_size=2)
    net = sngd.reconstruct(layer().to(dtype), config)
    wide = sngd.reconstruct(layer(), config)
    seen = []

    def recording(operation):
        def recorded(x, *arguments, **options):
            seen.append(x.dtype)
            return operation(x, *arguments, **options)

        return recorded

    for name in ("second_moment", "conv_second_moment", "squared_sum"):
        monkeypatch.setattr(sngd_kernels, name, recording(getattr(sngd_kernels, name)))
    x = torch.randn(shape).to(dtype)
    net(x)
    assert set(seen) == {dtype}
    monkeypatch.undo()
    wide(x.float())
    factors = [sngd.fisher_layers(sngd.refresh_(one))["weight"].factor for one in (net, wide)]
    torch.testing.assert_close(*factors)


@pytest.mark.parametrize(("dtype", "value"), [(torch.float16, float("inf")), (HALVES[0], 1e38)])
def test_halves_that_cannot_be_squared_are_rejected(dtype, value):
    net = sngd.reconstruct(nn.Linear(6, 3).to(dtype), EVERY_STEP)
    x = torch.randn(9, 6).to(dtype)
    x[2, 3] = value
    net(x)
    assert sngd.fisher_layers(net)["weight"].rows_seen == 0
    with pytest.warns(sngd.SngdWarning, match="too large to square"):
        sngd.refresh_(net)
