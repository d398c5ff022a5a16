"""Nested and sparse inputs train as the same rows in one dense batch do."""

import warnings

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from backend.compiled import compiled
from sngd_compile import Config

pytestmark = pytest.mark.usefixtures("float64")
SETTING = Config(refresh_every=1, observe_every=1, max_rows=None, damping_abs=0.1)
LENGTHS = (3, 1, 5)


def dense():
    """Return nine rows."""
    rows = torch.randn(9, 6, generator=torch.Generator().manual_seed(3))
    return rows * (rows.abs() > 0.3)


def jagged():
    """Return them as sequences."""
    return torch.nested.nested_tensor(list(dense().split(LENGTHS)), layout=torch.jagged)


def nested():
    """Return them as sequences of torch's first nested layout."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is a prototype
        return torch.nested.nested_tensor(list(dense().split(LENGTHS)))


def coordinates():
    """Return them sparse, by coordinates."""
    return dense().to_sparse()


def compressed(layout):
    """Return them sparse, by rows or by columns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dense().to_sparse(layout=layout)


BATCHES = {
    "jagged": jagged,
    "nested": nested,
    "coordinates": coordinates,
    "rows": lambda: compressed(torch.sparse_csr),
    "columns": lambda: compressed(torch.sparse_csc),
}


class Branching(nn.Linear):
    """Its forward cannot be captured."""

    def forward(self, x):
        """Apply the layer."""
        return super().forward(x) if self.weight.sum() > -1e9 else x


def network(first, outputs):
    """Return a network whose first layer has so many outputs: few or many beside nine rows."""
    torch.manual_seed(1)
    return nn.Sequential(first(6, outputs), nn.ReLU(), nn.Linear(outputs, 3))


def trained(batch, config, door, first=nn.Linear, outputs=4):
    """Train three steps; return the plain weights."""
    model = network(first, outputs)
    net = sngd.reconstruct(model, config, inplace=True) if door else compiled(model, config=config)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        result = net(batch)
        if result.is_nested and result.layout is torch.jagged:
            result = result.values()
        parts = result.unbind() if result.is_nested else [result]
        sum(part.square().sum() for part in parts).backward()
        optimizer.step()
    return [p.detach() for p in sngd.fold(model).parameters()]


@pytest.mark.parametrize("outputs", [4, 40])
@pytest.mark.parametrize("first", [nn.Linear, Branching])
@pytest.mark.parametrize("name", BATCHES)
def test_other_layouts_have_the_same_rows(name, first, outputs):
    args = SETTING, True, first, outputs
    torch.testing.assert_close(trained(BATCHES[name](), *args), trained(dense(), *args))


@pytest.mark.parametrize("fisher", ["kronecker", "unit", "diagonal", "block", "sketch"])
@pytest.mark.parametrize("name", ["jagged", "coordinates"])
def test_every_kind_takes_them(name, fisher):
    config = SETTING.replace(fisher=fisher, activation="relu", rank=3, block_size=4)
    found, expected = trained(BATCHES[name](), config, True), trained(dense(), config, True)
    torch.testing.assert_close(found, expected)


def test_compiled_frames_take_jagged_batches():
    found, expected = (trained(batch, SETTING, False) for batch in (jagged(), dense()))
    torch.testing.assert_close(found, expected)


def test_what_dynamo_does_not_compile_is_named():
    with pytest.warns(sngd.SngdWarning, match="receive plain gradients. 0.weight"):
        trained(coordinates(), SETTING, False)


@pytest.mark.parametrize("entries", [7, 70])
def test_jagged_indices_are_looked_up(entries):
    indices = torch.arange(9) * 5 % entries
    parts = torch.nested.nested_tensor(list(indices.split(LENGTHS)), layout=torch.jagged)

    def step(batch):
        torch.manual_seed(2)
        net = sngd.reconstruct(nn.Sequential(nn.Embedding(entries, 4), nn.Linear(4, 2)), SETTING)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            net.zero_grad()
            result = net(batch)
            (result.values() if result.is_nested else result).square().sum().backward()
            optimizer.step()
        return [p.detach() for p in sngd.fold(net).parameters()]

    torch.testing.assert_close(step(parts), step(indices))


def test_complex_inputs_are_observed_as_two_real_ones():
    weight = nn.Parameter(torch.randn(4, 5, dtype=torch.float64))
    x = torch.randn(7, 5, dtype=torch.complex128)

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x):
            return x @ self.weight.to(x.dtype).T

    factors = []
    for inputs in (x, torch.cat([x.real, x.imag])):
        net = sngd.reconstruct(Product(), SETTING)
        assert torch.equal(net(inputs), Product()(inputs))
        (fisher,) = sngd.fisher_layers(sngd.refresh_(net)).values()
        assert fisher.rows_seen == 14
        factors.append(fisher.factor)
    torch.testing.assert_close(*factors)
