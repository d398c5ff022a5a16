"""The factors are the covariances of an independent library's K-FAC."""

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config

curvlinops = pytest.importorskip(
    "curvlinops", reason="needs the oracle: pip install --no-deps -r requirements-oracle.txt"
)
pytestmark = pytest.mark.usefixtures("float64")


def mlp() -> nn.Sequential:
    """Read `[N, 5]`."""
    return nn.Sequential(
        nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6, bias=False), nn.ReLU(), nn.Linear(6, 3)
    )


def conv_net() -> nn.Sequential:
    """Read `[N, 2, 9, 8]`."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 3, (3, 2), dilation=(1, 2), padding=(0, 1), bias=False),
        nn.Tanh(),
        nn.Conv2d(3, 5, 1),
        nn.Flatten(),
        nn.Linear(60, 3),
    )


NETWORKS = pytest.mark.parametrize(("network", "shape"), [(mlp, (5,)), (conv_net, (2, 9, 8))])
Batches = list[tuple[Tensor, Tensor]]


def batches(shape: tuple[int, ...]) -> Batches:
    """Draw two, of different sizes."""
    return [(torch.randn(size, *shape), torch.randint(3, (size,))) for size in (11, 6)]


def covariances(model: nn.Module, data: Batches, kind: str, which: str) -> dict[str, Tensor]:
    """Return those of the oracle, by the names of the layers."""
    operator = curvlinops.KFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        data,
        fisher_type=kind,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    operator @ torch.zeros(operator.shape[1])
    return operator.state_dict()[which]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare factors by layer."""
    assert sorted(found) == sorted(f"{name}.weight" for name in expected)
    for name, covariance in expected.items():
        assert (found[f"{name}.weight"] - covariance).norm() <= 1e-10 * covariance.norm()


@NETWORKS
def test_factors_are_the_oracles_input_covariances(network, shape):
    model, data = network(), batches(shape)
    expected = covariances(model, data, "forward-only", "input_covariances")
    net = sngd.reconstruct(model, Config(max_rows=None))
    for inputs, _ in data:
        net(inputs)
    layers = sngd.fisher_layers(sngd.refresh_(net))
    assert_same({name: layer.factor for name, layer in layers.items()}, expected)


@NETWORKS
def test_empirical_output_factors_are_the_oracles(network, shape):
    model, data = network(), batches(shape)
    expected = covariances(model, data, "empirical", "gradient_covariances")
    net = sngd.reconstruct(model, Config(max_rows=None, fisher="kronecker"))
    for inputs, labels in data:
        (nn.functional.cross_entropy(net(inputs), labels, reduction="sum") / 17).backward()
    layers = sngd.fisher_layers(sngd.refresh_(net))
    assert_same({name: layer.output_side.factor for name, layer in layers.items()}, expected)
