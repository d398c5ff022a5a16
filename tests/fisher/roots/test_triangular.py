"""Block products with a triangle are products, for every width, in vmap and in a compiled graph."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.func import grad, vmap

from sngd_compile.fisher.roots import triangular
from sngd_compile.fisher.roots.triangular import (
    BLOCK,
    FEW,
    multiply,
    multiply_transposed,
    solve,
    solve_between,
)

pytestmark = pytest.mark.usefixtures("float64")

WIDTHS = (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 44)
PRODUCTS = {
    "A": (multiply, lambda lower, x: x @ lower),
    "A^T": (multiply_transposed, lambda lower, x: x @ lower.mT),
}


def triangle(width, *lead):
    return torch.randn(*lead, width, width).tril()


@pytest.fixture(params=PRODUCTS)
def both(request, monkeypatch):
    monkeypatch.setattr(triangular, "FEW", -1)
    return PRODUCTS[request.param]


@pytest.mark.parametrize("rows", [FEW, FEW + 1])
@pytest.mark.parametrize("name", PRODUCTS)
def test_few_rows_and_more(name, rows):
    product, dense = PRODUCTS[name]
    lower, x = triangle(BLOCK + 5), torch.randn(rows, BLOCK + 5, requires_grad=True)
    found = product(lower, x)
    torch.testing.assert_close(found, dense(lower, x))
    assert ("Multiply" in found.grad_fn.name()) == (rows > FEW)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_it_is_the_product(both, width, rows):
    product, dense = both
    lower, x = triangle(width), torch.randn(rows, width)
    torch.testing.assert_close(product(lower, x), dense(lower, x))
    strided = torch.randn(width, 2 * rows).T[::2]
    torch.testing.assert_close(product(lower, strided), dense(lower, strided))


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("width", WIDTHS)
def test_what_leads_from_one_triangle_to_another_is_a_triangle(width, lead):
    steep = 3.0 * torch.eye(width)
    lower, other = (triangle(width, *lead) / width + steep for _ in range(2))
    between = solve_between(lower, other)
    torch.testing.assert_close(between @ lower, other)
    torch.testing.assert_close(between, solve(lower, other))
    assert torch.equal(between, between.tril())


def test_gradients_of_gradients(both):
    product, _ = both
    lower, x = triangle(BLOCK + 3), torch.randn(2, BLOCK + 3, requires_grad=True)
    assert gradcheck(lambda x: product(lower, x), x)
    assert torch.autograd.gradgradcheck(lambda x: product(lower, x).square(), x)


@pytest.mark.parametrize("dims", [(None, 0), (0, None), (0, 0), (None, 1), (2, 0)])
def test_samples_of_a_vmap(both, dims):
    product, dense = both
    lower, x = triangle(BLOCK + 5, 3), torch.randn(3, 4, BLOCK + 5)
    arguments = [
        tensor[0] if dim is None else tensor.movedim(0, dim)
        for tensor, dim in zip((lower, x), dims, strict=True)
    ]

    def loss(product):
        return lambda lower, x: product(lower, x).sin().sum()

    for made in (lambda f: f, lambda f: grad(loss(f), argnums=1)):
        found = vmap(made(product), in_dims=dims)(*arguments)
        torch.testing.assert_close(found, vmap(made(dense), in_dims=dims)(*arguments))


def test_compiled(both):
    product, dense = both
    lower, x = triangle(BLOCK + 5), torch.randn(4, BLOCK + 5, requires_grad=True)
    compiled = torch.compile(product, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(lower, x), dense(lower, x))
    (found,) = torch.autograd.grad(compiled(lower, x).sin().sum(), x)
    torch.testing.assert_close(found, torch.autograd.grad(dense(lower, x).sin().sum(), x)[0])
