"""A batch without rows in training is taken where the plain layer takes it, and changes nothing."""

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config

pytestmark = pytest.mark.usefixtures("float64")

LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (4,), {}),
    "sketch": (lambda: nn.Linear(4, 3), (4,), {"rank": 1}),
    "block": (lambda: nn.Linear(4, 3, bias=False), (4,), {"fisher": "block", "block_size": 2}),
    "diagonal": (lambda: nn.Linear(4, 3), (4,), {"fisher": "diagonal"}),
    "kronecker": (lambda: nn.Linear(4, 3), (4,), {"fisher": "kronecker"}),
    "convolution": (lambda: nn.Conv1d(2, 3, 2), (2, 5), {}),
    "layer norm": (lambda: nn.LayerNorm(4), (4,), {}),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 3), {}),
}


def trained(name: str, sizes: tuple[int, ...]) -> Tensor:
    """Train on batches of these sizes, and return all weights."""
    make, shape, options = LAYERS[name]
    torch.manual_seed(0)
    net = sngd.reconstruct(make(), Config(refresh_every=1, observe_every=1, **options))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for size in sizes:
        optimizer.zero_grad()
        net(torch.randn(size, *shape)).square().sum().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in sngd.fold(net).parameters()])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("sizes", [(5, 0, 5), (0, 5, 5)])
def test_it_changes_nothing(name, sizes):
    torch.testing.assert_close(trained(name, sizes), trained(name, (5, 5)))
