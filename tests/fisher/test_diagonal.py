"""`Config(fisher="diagonal")` keeps the diagonal of what "shared" keeps, where it is asked for."""

import pytest
import torch

import sngd_compile as sngd
from sngd_compile import Config
from theorem.networks import MLP, ConvNet, batch, loss

pytestmark = pytest.mark.usefixtures("float64")
SHARED = Config(max_rows=None)
DIAGONAL = SHARED.replace(fisher="diagonal")


@pytest.mark.parametrize("network", [MLP, ConvNet])
def test_it_is_the_diagonal_of_the_full_factor(network):
    model = network()
    layers = []
    for config in (SHARED, DIAGONAL):
        net = sngd.reconstruct(model, config)
        net(batch(model, 0)[0])
        layers.append(sngd.fisher_layers(sngd.refresh_(net)))
    for name, full in layers[0].items():
        diagonal = layers[1][name]
        assert diagonal.kind == "diagonal"
        expected = full.factor.diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(diagonal.factor, expected, rtol=1e-12, atol=0.0)
        assert diagonal.damping == pytest.approx(full.damping, rel=1e-12)


def test_an_override_chooses_it_for_one_layer():
    model = MLP()
    overrides = {"middle.*": DIAGONAL}
    kinds = {site.name: site.kind for site in sngd.explain(model, overrides=overrides).sites}
    assert kinds == {
        "first.weight": "shared",
        "middle.weight": "diagonal",
        "last.weight": "shared",
    }
    text = str(sngd.explain(model, overrides=overrides))
    assert "diagonal 8" in text
    assert "notes on" not in text
    net = sngd.reconstruct(model, overrides=overrides)
    assert {name: layer.kind for name, layer in sngd.fisher_layers(net).items()} == kinds


def test_a_compiled_model_takes_it_too():
    model = MLP()
    net = sngd.reconstruct(model, DIAGONAL)
    options = {"fisher": "diagonal", "max_rows": None, "inner_backend": "eager"}
    compiled = torch.compile(model, backend="sngd", options=options)
    for trained in (net, compiled):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.9)
        for step in range(6):
            optimizer.zero_grad()
            inputs, labels = batch(model, step)
            (loss(trained(inputs), labels) / len(labels)).backward()
            optimizer.step()
    kinds = {layer.kind for layer in sngd.fisher_layers(compiled).values()}
    assert kinds == {"diagonal"}
    plain = sngd.fold(net)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
