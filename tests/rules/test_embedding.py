"""`nn.Embedding` and `F.embedding` obey every law, with the diagonal of frequencies as factor."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from laws import Case, every_law

pytestmark = pytest.mark.usefixtures("float64")


def draw(*shape: int, entries: int = 5):
    """Draw indices, the last entry never."""
    return lambda generator: torch.randint(entries - 1, shape, generator=generator)


def indicators(layer: nn.Module, x: Tensor) -> Tensor:
    """Write the indicator of every index out; the padding index has none."""
    rows = torch.eye(layer.num_embeddings)[x.flatten()]
    if layer.padding_idx is not None:
        rows[:, layer.padding_idx] = 0
    return rows


case = partial(
    Case,
    module=partial(nn.Embedding, 5, 3),
    rows=indicators,
    shape=(),
    bias=None,
    arrange=torch.t,
    diagonal=True,
)
CASES = [
    case(name="sequence", draw=draw(4, 3)),
    case(name="more rows than entries", draw=draw(11)),
    case(name="one index", draw=draw(1)),
    case(name="padding", module=partial(nn.Embedding, 5, 3, padding_idx=1), draw=draw(4, 3)),
    case(name="last entry", module=partial(nn.Embedding, 5, 3, padding_idx=-4), draw=draw(9)),
    case(name="one column", module=partial(nn.Embedding, 5, 1), draw=draw(6)),
]


@every_law(CASES)
def test_embedding(laws):
    laws.check()


class Table(nn.Module):
    """A table that `options` say how to look up."""

    def __init__(self, **options):
        super().__init__()
        self.weight, self.options = nn.Parameter(torch.randn(5, 3)), options

    def forward(self, x: Tensor) -> Tensor:
        """Look up."""
        return F.embedding(x, self.weight, **self.options)


@pytest.mark.parametrize(
    "options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}], ids=str
)
def test_tables_that_change_on_the_way_are_left(options):
    model = Table(**options)
    (skip,) = sngd.explain(model).skips
    assert f"F.embedding with {next(iter(options))}" in skip.reason
    x = torch.tensor([1, 4])
    assert torch.equal(sngd.reconstruct(model)(x), model(x))


def test_a_large_table_holds_no_square():
    with torch.device("meta"):
        (site,) = sngd.explain(nn.Embedding(50_000, 512)).sites
    assert site.kind == "diagonal"
    assert site.state_bytes < 4 * 50_000 * 8
