"""A table that another module reads as a whole: every entry counts alike, once the call is made."""

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from api import apart, train

pytestmark = pytest.mark.usefixtures("float64")


class Queries(nn.Module):
    """Learned queries, copied for every sample, as detection transformers have them."""

    def __init__(self, copies):
        super().__init__()
        self.queries, self.copies = nn.Embedding(4, 3), copies

    def forward(self, x: Tensor) -> Tensor:
        """Multiply `[N, 3]` by the queries, to `[N, 4]`."""
        queries = self.copies(self.queries.weight.unsqueeze(0), len(x))
        return (queries @ x[..., None]).squeeze(-1)


COPIES = {
    "rows": lambda w, n: w.squeeze(0).repeat(n, 1).view(n, 4, 3),
    "repeat": lambda w, n: w.repeat(n, 1, 1),
    "sizes as one": lambda w, n: w.repeat((n, 1, 1)),
    "expand": lambda w, n: w.expand(n, -1, -1),
    "all sizes": lambda w, n: w.expand(n, 4, 3),
}


@pytest.mark.parametrize("copies", COPIES.values(), ids=COPIES)
def test_every_entry_counts_alike(copies):
    net = sngd.reconstruct(Queries(copies))
    train(net, inputs=lambda step: torch.randn(5, 3, generator=torch.manual_seed(step)))
    (layer,) = sngd.fisher_layers(net).values()
    torch.testing.assert_close(layer.factor, torch.full((4,), 0.25))
    assert apart(net, sngd.fold(net), torch.randn(2, 3)) < 1e-13


@pytest.mark.parametrize("times", [2, 3])  # three is as many as there are columns
def test_columns_side_by_side_are_no_look_up(times):
    plan = sngd.explain(Queries(lambda w, n: w.repeat(n, 1, times)[..., :3]))
    assert not plan.sites
    assert "repeated along its columns" in plan.skips[0].reason


def test_a_parameter_that_is_no_table_stays_as_it_is():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, 3))

        def forward(self, x):
            return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)

    (skip,) = sngd.explain(Token()).skips
    assert "no table [V, E]: no rule for the result" in skip.reason
