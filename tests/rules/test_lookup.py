"""A table of a module's own, indexed by integers: the diagonal of frequencies once it is called."""

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from api import apart, train

pytestmark = pytest.mark.usefixtures("float64")
INDICES = torch.tensor([[0, 2, 2], [3, 0, 0]])


class Positions(nn.Embedding):
    """Looks its table up by indexing, or takes a slice."""

    def forward(self, indices: Tensor | None = None, length: int = 2) -> Tensor:
        """Return rows of the table."""
        if indices is None:
            return self.weight[1 : 1 + length]
        return self.weight[indices]


class Bare(nn.Module):
    """A parameter that is indexed."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 3))

    def forward(self, indices: Tensor) -> Tensor:
        """Return rows of the table."""
        return self.table[indices]


def test_an_indexed_embedding_counts_its_entries():
    net = sngd.reconstruct(Positions(5, 3))
    net(INDICES)
    (layer,) = sngd.fisher_layers(sngd.refresh_(net)).values()
    assert layer.kind == "diagonal"
    torch.testing.assert_close(layer.factor, torch.tensor([3.0, 0, 2, 1, 0]) / 6)


def test_a_slice_looks_its_entries_up():
    net = sngd.reconstruct(Positions(5, 3))
    net(length=3)
    (layer,) = sngd.fisher_layers(sngd.refresh_(net)).values()
    torch.testing.assert_close(layer.factor, torch.tensor([0.0, 1, 1, 1, 0]) / 3)


def test_a_bare_table_counts_its_entries():
    net = sngd.reconstruct(Bare())
    net(INDICES)
    (layer,) = sngd.fisher_layers(sngd.refresh_(net)).values()
    counts = torch.bincount(INDICES.flatten(), minlength=5)
    torch.testing.assert_close(layer.factor, counts / INDICES.numel())


@pytest.mark.parametrize("model_class", [lambda: Positions(5, 3), Bare])
def test_it_trains_and_folds(model_class):
    net = sngd.reconstruct(model_class())
    train(net, inputs=lambda step: INDICES)
    assert apart(net, sngd.fold(net), INDICES) < 1e-12
