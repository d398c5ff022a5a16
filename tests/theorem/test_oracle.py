"""The factors are the input covariances of an independent library's forward-only K-FAC."""

import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize(("network", "shape"), [(mlp, (5,)), (conv_net, (2, 9, 8))])
def test_factors_are_the_oracles_input_covariances(network, shape):
    model = network()
    data = [(torch.randn(size, *shape), torch.randint(3, (size,))) for size in (11, 6)]
    operator = curvlinops.KFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        data,
        fisher_type="forward-only",
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    operator @ torch.zeros(operator.shape[1])
    covariances = operator.state_dict()["input_covariances"]

    net = sngd.reconstruct(model, Config(max_rows=None))
    for inputs, _ in data:
        net(inputs)
    layers = sngd.fisher_layers(sngd.refresh_(net))

    assert sorted(layers) == sorted(f"{name}.weight" for name in covariances)
    for name, covariance in covariances.items():
        factor = layers[f"{name}.weight"].factor
        assert (factor - covariance).norm() <= 1e-10 * covariance.norm()
