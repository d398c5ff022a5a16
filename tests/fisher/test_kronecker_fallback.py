"""Where a local Fisher with two sides is unavailable, "shared" is used; the plan says why."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config

CONFIG = Config(fisher="kronecker", max_rows=None)


class Tied(nn.Module):
    """A table that is also the head."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Look up, then score."""
        return F.linear(F.embedding(x, self.table), self.table)


FALLBACKS = [
    (nn.LayerNorm(4), "the rule norm|the rule layer", CONFIG),
    (nn.LSTM(3, 4), "its module's forward runs as written", CONFIG),
    (Tied(), "the rule embedding|uses is transposed", CONFIG),
    (nn.Linear(3, 4, dtype=torch.float16), "use bfloat16", CONFIG),
]


@pytest.mark.parametrize(("model", "reason", "config"), FALLBACKS, ids=lambda v: type(v).__name__)
def test_a_layer_that_cannot_have_it_says_why(model, reason, config):
    explained = sngd.explain(model, config)
    assert {site.kind for site in explained.sites} == {"shared"}
    for site in explained.sites:
        assert any(part in site.note for part in reason.split("|")), site.note
        assert f'fisher = "{config.fisher}" is unavailable here; using "shared"' in site.note
    text = str(explained)
    assert all(site.note in text for site in explained.sites)
    net = sngd.reconstruct(model, config)
    assert all(layer.output_side is None for layer in sngd.fisher_layers(net).values())
    assert [site.note for site in sngd.explain(net).sites] == [s.note for s in explained.sites]


def test_a_model_compiled_with_the_backend_says_why():
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    compiled = torch.compile(
        model, backend="sngd", options={"fisher": "kronecker", "inner_backend": "eager"}
    )
    compiled(torch.randn(4, 5)).sum().backward()
    sites = sngd.explain(compiled).sites
    assert [site.kind for site in sites] == ["shared", "shared"]
    assert all("use reconstruct" in site.note for site in sites)


@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings("ignore:weight. its damped factor is not positive definite")
@pytest.mark.parametrize("size", [1e-150, 1e-80, 1e80, 1e150])
def test_gradients_of_any_size_leave_a_root_and_the_function(size):
    layer = nn.Linear(4, 3, bias=False)
    net = sngd.reconstruct(layer, sngd.Config(fisher="kronecker", observe_every=1))
    x = torch.randn(7, 4) / 1e13
    (net(x).sum() * size).backward()
    before = net(x).detach()
    torch.optim.SGD(net.parameters(), lr=0.0).step()
    assert all(value.isfinite().all() for value in net.weight_fisher.root_buffers.buffers())
    torch.testing.assert_close(net(x), before)
