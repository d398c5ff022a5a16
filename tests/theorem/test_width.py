"""With `over_outputs="mean"` width does not matter: twice the units, each twice, train alike."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config

pytestmark = pytest.mark.usefixtures("float64")
STEPS = 15
MEAN = Config(over_outputs="mean", refresh_every=4, observe_every=1, max_rows=None, damping_abs=0.0)


def mlp() -> nn.Sequential:
    """Read `[N, 5]`; no bias reads the units that are doubled, its 1 would not double."""
    return nn.Sequential(
        nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)
    )


def conv_net() -> nn.Sequential:
    """Read `[N, 5, 6]`."""
    return nn.Sequential(
        nn.Conv1d(5, 7, 3),
        nn.Tanh(),
        nn.Conv1d(7, 4, 2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


@torch.no_grad()
def doubled(model: nn.Sequential) -> nn.Sequential:
    """Repeat every unit of the first layer, and halve the weights that read them."""
    first, second = type(model[0]), type(model[2])
    kernels = [module.weight.shape[2:] for module in (model[0], model[2])]
    wide, reading = first(5, 14, *kernels[0]), second(14, 4, *kernels[1], bias=False)
    wide.weight.copy_(model[0].weight.repeat_interleave(2, 0))
    wide.bias.copy_(model[0].bias.repeat_interleave(2))
    reading.weight.copy_(model[2].weight.repeat_interleave(2, 1) / 2)
    return nn.Sequential(wide, model[1], reading, *model[3:])


def trajectory(model: nn.Module, config: Config, batches: list[Tensor], clip: float) -> Tensor:
    """Train from the first root on; return the outputs on the last batch after every step."""
    net = sngd.reconstruct(model, config)
    net(batches[0])
    sngd.refresh_(net)  # the identity root, before it, is not invariant
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    outputs = []
    for inputs in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), torch.arange(len(inputs)) % 3).backward()
        nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        outputs.append(net(batches[-1]).detach())
    return torch.stack(outputs)


@pytest.mark.parametrize("fisher", ["shared", "unit"])
@pytest.mark.parametrize(("network", "shape"), [(mlp, (30, 5)), (conv_net, (30, 5, 6))])
def test_the_function_does_not_see_that_every_unit_is_doubled(network, shape, fisher):
    torch.manual_seed(3)
    model = network()
    batches = [torch.randn(shape) for _ in range(STEPS)]

    def difference(config: Config, clip: float) -> float:
        narrow, wide = (trajectory(one, config, batches, clip) for one in (model, doubled(model)))
        return float((narrow - wide).abs().max() / narrow.abs().max())

    config = MEAN.replace(fisher=fisher)
    assert difference(config, clip=float("inf")) < 1e-9
    assert difference(config, clip=0.5) < 1e-6  # clip_grad_norm_ adds 1e-6 to the norm
    assert difference(config.replace(over_outputs="sum"), clip=0.5) > 1e-3


@pytest.mark.parametrize("fisher", ["shared", "diagonal", "block", "unit"])
@pytest.mark.parametrize("groups", [1, 3])
def test_the_damped_factor_is_divided_by_all_outputs(fisher, groups):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(6, 9, 2, groups=groups), torch.randn(4, 6, 5, 5)
    layers = []
    for over_outputs in ("sum", "mean"):
        config = Config(fisher=fisher, over_outputs=over_outputs, block_size=7)
        net = sngd.reconstruct(nn.Sequential(layer, nn.ReLU()), config)
        net(x)
        layers.append(sngd.fisher_layers(sngd.refresh_(net))["0.weight"])
    total, mean = layers
    torch.testing.assert_close(mean.factor, total.factor)
    assert mean.damping == pytest.approx(total.damping / 9, rel=1e-12)
    torch.testing.assert_close(mean.root, 3 * total.root, rtol=1e-10, atol=1e-10)


def test_what_measures_the_outputs_itself_does_not_read_it():
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 6), torch.randn(20, 4)
    roots = []
    for over_outputs in ("sum", "mean"):
        net = sngd.reconstruct(layer, Config(fisher="kronecker", over_outputs=over_outputs))
        net(x).square().mean().backward()
        fisher_layer = sngd.fisher_layers(sngd.refresh_(net))["weight"]
        assert fisher_layer.kind == "kronecker"
        roots.append(fisher_layer.root)
    assert torch.equal(*roots)


def test_a_compiled_model_takes_it_too():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = mlp()
    net = sngd.reconstruct(model, Config(over_outputs="mean", max_rows=None))
    options = {"over_outputs": "mean", "max_rows": None, "inner_backend": "eager"}
    compiled = torch.compile(model, backend="sngd", options=options)
    batches = [torch.randn(20, 5) for _ in range(6)]
    for trained in (net, compiled):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.02, momentum=0.9)
        for inputs in batches:
            optimizer.zero_grad()
            trained(inputs).square().mean().backward()
            optimizer.step()
    for one, other in zip(model.parameters(), sngd.fold(net).parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
