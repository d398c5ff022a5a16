"""An augmented assignment changes a tensor for all who hold it, a number for one variable."""

import pytest
import torch
import torch.nn.functional as F

import sngd_compile as sngd
from capture import Layer

pytestmark = pytest.mark.usefixtures("float64")


class Augmented(Layer):
    """Assigns `op=` to an activation that it and its caller hold, and to a number."""

    def forward(self, x):
        """Apply the layer."""
        held, rows = x, x.shape[0]
        more = rows
        x += 1
        x *= 2
        more += 1
        return F.linear(held, self.weight) * rows + more + x


def test_it_is_seen_by_all_who_hold_the_tensor():
    model, x = Augmented(), torch.ones(2, 3)
    assert len(sngd.graph(sngd.reconstruct(model))) == 1
    given = [x.clone(), x.clone()]
    torch.testing.assert_close(sngd.reconstruct(model)(given[0]), model(given[1]))
    assert torch.equal(*given)
    assert not torch.equal(given[0], x)
