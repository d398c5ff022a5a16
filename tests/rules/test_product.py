"""Products with a module's own parameter, on either side, obey every law."""

from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from laws import Case, every_law, linear_rows

pytestmark = pytest.mark.usefixtures("float64")
Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


class Product(nn.Module):
    """A product of the input with a parameter, as `forward` writes it."""

    def __init__(self, shape: tuple[int, ...], bias: tuple[int, ...] = ()):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.randn(bias)) if bias else None


@cache
def written(forward: Forward, has_bias: bool) -> type[nn.Module]:
    """Make, once, the class of this forward."""
    with_bias = {"forward": lambda self, x: forward(x, self.weight, self.bias)}
    without = {"forward": lambda self, x: forward(x, self.weight)}
    return type("Written", (Product,), with_bias if has_bias else without)


def product(forward: Forward, shape: tuple[int, ...], bias: tuple[int, ...] = ()) -> nn.Module:
    """Make a module of this forward."""
    return written(forward, bool(bias))(shape, bias)


def columns(layer: nn.Module, x: Tensor) -> Tensor:
    """Take the columns of every matrix of the input."""
    return x.mT.reshape(-1, x.shape[-2])


def stack_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Take the rows of `[..., G, N, K]` that meet each group, one after the other."""
    x = x if x.dim() > 2 else x[None]
    x = x.expand(*x.shape[:-3], len(layer.weight), *x.shape[-2:])
    return torch.stack([x[..., g, :, :].reshape(-1, x.shape[-1]) for g in range(len(layer.weight))])


def case(
    name: str, forward: Forward, weight: tuple[int, ...], shape: tuple[int, ...], **options: object
) -> Case:
    """Describe a product without a bias, the parameter on the right."""
    options = {"arrange": torch.t, "rows": linear_rows, "bias": None} | options
    return Case(name=name, module=partial(product, forward, weight), shape=shape, **options)


left = {"arrange": partial(torch.flatten, start_dim=1), "rows": columns, "channel_axis": -2}
left_of_vector = left | {"rows": linear_rows, "channel_axis": -1}
vector = {"arrange": lambda w: w[None]}
stack = {"rows": stack_rows, "arrange": lambda w: w.mT.flatten(0, 1)}


def channels_last(forward: Forward) -> Forward:
    """Bring the groups of `[..., G, N, O]` to the outputs, for the Jacobian law."""
    return lambda x, w: forward(x, w).transpose(-3, -2).flatten(-2)


CASES = [
    case("x @ W", lambda x, w: x @ w, (3, 4), (5, 3)),
    case("x @ W with few rows", lambda x, w: x @ w, (3, 9), (2, 3)),
    case("matmul", torch.matmul, (3, 4), (2, 5, 3)),
    case("x.matmul", lambda x, w: x.matmul(w), (3, 4), (3,)),
    case("mm", lambda x, w: torch.mm(x, mat2=w), (3, 4), (5, 3)),
    case("x.mm", lambda x, w: x.mm(w), (3, 4), (5, 3)),
    case("dunder", lambda x, w: x.__matmul__(w), (3, 4), (5, 3)),
    case("D = 1", lambda x, w: x @ w, (1, 4), (5, 1)),
    case("x @ W.t()", lambda x, w: x @ w.t(), (4, 3), (5, 3), arrange=torch.clone),
    case("x @ W.T", lambda x, w: x @ w.T, (4, 3), (2, 5, 3), arrange=torch.clone),
    case("W @ x", lambda x, w: w @ x, (4, 3), (3, 5), **left),
    case("W @ x, batched", lambda x, w: w @ x, (4, 3), (2, 3, 5), **left),
    case("W @ vector", lambda x, w: w @ x, (4, 3), (3,), **left_of_vector),
    case("W.t() @ x", lambda x, w: w.t() @ x, (3, 4), (3, 5), **left | {"arrange": torch.t}),
    case("vector weight", lambda x, w: (x @ w)[..., None], (3,), (2, 5, 3), **vector),
    case("vector on the left", lambda x, w: (w @ x)[None], (3,), (3, 5), **left | vector),
    case("bmm", channels_last(torch.bmm), (2, 3, 4), (2, 5, 3), **stack),
    case("matmul of stacks", channels_last(torch.matmul), (2, 3, 4), (2, 5, 3), **stack),
    case("stack, batched", channels_last(torch.matmul), (2, 3, 4), (3, 2, 5, 3), **stack),
    case("stack, broadcast", channels_last(torch.matmul), (2, 3, 4), (3, 1, 5, 3), **stack),
    case("stack, matrix", channels_last(torch.matmul), (2, 3, 4), (5, 3), **stack),
    case(
        "stack of transposes",
        channels_last(lambda x, w: x @ w.transpose(1, 2)),
        (2, 4, 3), (2, 5, 3),
        **stack | {"arrange": lambda w: w.flatten(0, 1)},
    ),
    Case(
        name="addmm",
        module=partial(product, lambda x, w, b: torch.addmm(b, x, w), (3, 4), (4,)),
        shape=(5, 3),
        rows=linear_rows,
        arrange=torch.t,
    ),
    Case(
        name="b.addmm with few rows",
        module=partial(product, lambda x, w, b: b.addmm(x, w), (3, 9), (9,)),
        shape=(2, 3),
        rows=linear_rows,
        arrange=torch.t,
    ),
    Case(
        name="addmm on the left",
        module=partial(product, lambda x, w, b: torch.addmm(b, w, x), (4, 3), (4, 1)),
        shape=(3, 5),
        rows=columns,
        channel_axis=-2,
    ),
    case("addmm with a table", lambda x, w: torch.addmm(x[:, :1], x, w), (3, 4), (5, 3)),
]  # fmt: skip


@every_law(CASES)
def test_product(laws):
    laws.check()


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda x, w: w @ w, "two parameters"),
        (lambda x, w: torch.addmm(x, x, w, alpha=2), "torch.addmm with beta, alpha or out"),
    ],
)
def test_reasons(forward, reason):
    model = product(forward, (3, 3))
    (skip,) = sngd.explain(model).skips
    assert reason in skip.reason
    x = torch.randn(3, 3)
    assert torch.equal(sngd.reconstruct(model)(x), model(x))


@pytest.mark.parametrize(
    "forward",
    [
        lambda x, w: x @ w,
        lambda x, w: w.mT @ x.mT,
        torch.matmul,
        lambda x, w: torch.mm(x, w),
        lambda x, w: torch.addmm(x[:, :1], x, w),
        lambda x, w: w.__rmatmul__(x),
    ],
)
def test_products_that_are_met_as_they_run(forward):
    """Where the forward cannot be captured, the same rows are seen."""

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3))

        def forward(self, x):
            return forward(x, self.weight) if x.sum() > -100 else x

    net = sngd.reconstruct(Branching(), sngd.Config(max_rows=None))
    x = torch.randn(5, 3)
    net(x)
    assert sngd.graph(net) == {}
    assert sngd.fisher_layers(net)["weight"].rows_seen == 5
