"""`torch.einsum` with a module's own parameter obeys every law."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from laws import Case, every_law

pytestmark = pytest.mark.usefixtures("float64")


class Einsum(nn.Module):
    """An equation on the input and a parameter; its outputs may be joined to one last axis."""

    def __init__(self, equation: str, shape: tuple[int, ...], outputs: int, swap: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.equation, self.outputs, self.swap = equation, outputs, swap

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        if self.swap:
            result = torch.einsum(self.equation, self.weight, x)
        else:
            result = torch.einsum(self.equation, x, self.weight)
        return result.reshape(-1, self.outputs) if self.outputs else result


def case(
    equation: str,
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    rows: Callable[[Tensor], Tensor],
    arrange: Callable[[Tensor], Tensor],
    outputs: int = 0,
    swap: bool = False,
) -> Case:
    """Describe an equation by its rows and by the weight as a matrix, both written out."""
    return Case(
        name=equation,
        module=partial(Einsum, equation, weight, outputs, swap),
        shape=shape,
        rows=lambda layer, x: rows(x),
        arrange=arrange,
        bias=None,
    )


def grouped(x: Tensor) -> Tensor:
    """Take the rows of every head of `[N, T, H, K]`."""
    return torch.stack([x[:, :, head].reshape(-1, x.shape[-1]) for head in range(x.shape[2])])


def stacked(w: Tensor) -> Tensor:
    """Lay `[H, K, D]` out as the outputs of one head after those of the other."""
    return w.mT.flatten(0, 1)


def joined(w: Tensor) -> Tensor:
    """Lay `[H, K, D]` out with heads and their axis contracted."""
    return w.flatten(0, 1).mT


def heads(w: Tensor) -> Tensor:
    """Lay `[K, H, D]` out with heads and their axis as outputs."""
    return w.flatten(1).mT


CASES = [
    case("nk,ok->no", (5, 3), (4, 3), lambda x: x, torch.clone),
    case("nk,ko->no", (5, 3), (3, 4), lambda x: x, torch.t),
    case("...k,ko->...o", (2, 5, 3), (3, 4), lambda x: x.reshape(-1, 3), torch.t),
    case("ok, nk -> no", (5, 3), (4, 3), lambda x: x, torch.clone, swap=True),
    case("nk,ko", (5, 3), (3, 4), lambda x: x, torch.t),
    case("knt,ok->nto", (3, 5, 2), (4, 3), lambda x: x.reshape(3, -1).mT, torch.clone),
    case("nthk,hkd->nthd", (2, 3, 2, 4), (2, 4, 3), grouped, stacked, 6),
    case("nthk,hkd->ntd", (2, 3, 2, 4), (2, 4, 3), lambda x: x.reshape(6, 8), joined),
    case("ntk,khd->nthd", (2, 3, 4), (4, 2, 3), lambda x: x.reshape(6, 4), heads, 6),
    case("nsk,ok->no", (5, 2, 3), (4, 3), lambda x: x.sum(1), torch.clone),
    case("k...,ko->...o", (3, 2, 5), (3, 4), lambda x: x.reshape(3, -1).mT, torch.t),
    case("nk,k->n", (5, 3), (3,), lambda x: x, lambda w: w[None], 1),
]  # fmt: skip


@every_law(CASES)
def test_einsum(laws):
    laws.check()


@pytest.mark.parametrize(
    ("equation", "shape", "reason"),
    [
        ("nk,kk->nk", (3, 3), "an index twice in one operand"),
        ("nk,ok->n", (4, 3), "over an index of its own"),
        ("nk,...k->n...", (4, 3), "ellipsis in the parameter"),
    ],
)
def test_reasons(equation, shape, reason):
    model = Einsum(equation, shape, 0, False)
    (skip,) = sngd.explain(model).skips
    assert reason in skip.reason
    x = torch.randn(5, 3)
    assert torch.equal(sngd.reconstruct(model)(x), model(x))


def test_an_axis_of_size_one_is_repeated():
    model = Einsum("nk,ok->no", (4, 3), 0, False)
    net = sngd.reconstruct(model, sngd.Config(max_rows=None))
    x = torch.randn(5, 1)
    net(x)
    factor = sngd.fisher_layers(sngd.refresh_(net))["weight"].factor
    rows = x.expand(5, 3)
    torch.testing.assert_close(factor, rows.T @ rows / 5)
    torch.testing.assert_close(net(x), model(x))
