"""`nn.EmbeddingBag` and `F.embedding_bag` obey every law, with a diagonal factor."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from laws import Case, every_law
from sngd_compile import Config

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # of vmap, in law 6
]


def draw(*shape: int):
    """Draw indices, the last entry never."""
    return lambda generator: torch.randint(4, shape, generator=generator)


class Offsets(nn.EmbeddingBag):
    """Takes bags of sizes 2, 0 and 5, perhaps with weights."""

    weights: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        ends = [7] if self.include_last_offset else []
        return super().forward(x, torch.tensor([0, 2, 2, *ends]), self.weights)


class Weighted(Offsets):
    """Weighs the indices, one of them negatively."""

    weights = torch.tensor([0.3, 1.2, -0.7, 0.4, 0.4, 0.1, 2.0], dtype=torch.float64)


class Own(nn.Module):
    """`F.embedding_bag` with a table of its own, which a graph captures."""

    num_embeddings, padding_idx, mode = 5, None, "mean"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Look up."""
        return F.embedding_bag(x, self.weight)


def held(layer: nn.Module, x: Tensor) -> Tensor:
    """Add up what every bag holds of every entry, `[B, V]`."""
    weights = getattr(layer, "weights", None)
    weights = torch.ones(x.shape) if weights is None else weights
    bags = slice(0, 2), slice(2, 2), slice(2, 7)
    pairs = [(x[bag], weights[bag]) for bag in bags]
    rows = []
    for indices, amounts in pairs if x.dim() == 1 else zip(x, weights, strict=True):
        row, count = torch.zeros(layer.num_embeddings), 0
        for index, amount in zip(indices, amounts, strict=True):
            if layer.padding_idx is None or index != layer.padding_idx:
                row[index] += amount
                count += 1
        rows.append(row / max(count, 1) if layer.mode == "mean" else row)
    return torch.stack(rows)


def bag_case(name, module=nn.EmbeddingBag, shape=(7,), **options):
    """Describe a table of five entries of three numbers."""
    return Case(
        name=name,
        module=partial(module, 5, 3, **options) if module is not Own else Own,
        rows=held,
        shape=(),
        bias=None,
        arrange=torch.t,
        diagonal=True,
        draw=draw(*shape),
    )


CASES = [
    bag_case("mean", shape=(4, 3)),
    bag_case("sum", shape=(4, 3), mode="sum"),
    bag_case("padding", shape=(6, 2), padding_idx=1),
    bag_case("padding from the end", shape=(6, 2), padding_idx=-4, mode="sum"),
    bag_case("offsets", Offsets),
    bag_case("offsets, sum", Offsets, mode="sum"),
    bag_case("offsets and padding", Offsets, padding_idx=2),
    bag_case("offsets with the last", Offsets, include_last_offset=True),
    bag_case("weights", Weighted, mode="sum"),
    bag_case("weights and padding", Weighted, mode="sum", padding_idx=0),
    bag_case("own table", Own, shape=(4, 3)),
]


@every_law(CASES)
def test_embedding_bag(laws):
    laws.check()


class Call(nn.Module):
    """A table that `options` say how to look up."""

    def __init__(self, **options):
        super().__init__()
        self.weight, self.options = nn.Parameter(torch.randn(5, 3)), options

    def forward(self, x: Tensor) -> Tensor:
        """Look up."""
        return F.embedding_bag(x, self.weight, **self.options)


REFUSED = [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}, {"mode": "max"}]


@pytest.mark.parametrize("options", REFUSED, ids=str)
@pytest.mark.parametrize("make", [Call, partial(nn.EmbeddingBag, 5, 3)], ids=["call", "layer"])
def test_bags_that_change_on_the_way_are_left(options, make):
    model = make(**options)
    (skip,) = sngd.explain(model).skips
    assert f"F.embedding_bag with {next(iter(options))}=" in skip.reason
    x = torch.tensor([[1, 4], [2, 2]])
    assert torch.equal(sngd.reconstruct(model)(x), model(x))


def test_every_bag_is_taken_whatever_the_limit():
    net = sngd.reconstruct(nn.EmbeddingBag(5, 3), Config(max_rows=1))
    net(torch.tensor([[0, 1], [2, 2], [0, 0]]))
    fisher = sngd.fisher_layers(sngd.refresh_(net))["weight"]
    assert fisher.rows_seen == 3
    torch.testing.assert_close(fisher.factor, torch.tensor([1.25, 0.25, 1.0, 0.0, 0.0]) / 3)


def test_the_plan_of_a_large_table_holds_no_square():
    with torch.device("meta"):
        (site,) = sngd.explain(nn.EmbeddingBag(50_000, 512)).sites
    assert (site.rule, site.kind) == ("embedding_bag", "diagonal")
    assert site.state_bytes < 4 * 50_000 * 8
