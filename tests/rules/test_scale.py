"""Products with a bare parameter obey every law, one local Fisher per element."""

import operator

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from laws import Case, every_law
from sngd_compile import Config

pytestmark = pytest.mark.usefixtures("float64")


class Product(nn.Module):
    """A parameter of some shape multiplied in some way, its elements along one axis."""

    def __init__(self, shape, multiply, arrange):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.multiply, self.arrange = multiply, arrange

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return self.arrange(self.multiply(self.weight, x))


def same(product: Tensor) -> Tensor:
    return product


def collected(layer: Product, x: Tensor) -> Tensor:
    """Collect what each element multiplies, one element after the other, `[C, N, 1]`."""
    elements = layer.weight.numel()
    rows = []
    for chosen in torch.eye(elements).reshape(elements, *layer.weight.shape):
        where = (chosen * torch.ones_like(x)).bool()
        rows.append((torch.ones_like(chosen) * x)[where])
    return torch.stack(rows)[..., None]


def scale_case(name, weight, shape, multiply=operator.mul, arrange=same, axis=-1):
    """Describe a product whose elements lie along `axis` of what `arrange` makes of it."""
    return Case(
        name=name,
        module=lambda: Product(weight, multiply, arrange),
        shape=shape,
        rows=collected,
        channel_axis=axis,
        bias=None,
        arrange=lambda values: values.reshape(-1, 1),
    )


class WrittenOut(nn.Module):
    """A root mean square norm as it is often written out."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, then scale."""
        input_dtype = x.dtype
        x = x.to(torch.float64)
        variance = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + 1e-6)
        return self.weight * x.to(input_dtype)


norm = Case(
    name="RMS norm written out",
    module=WrittenOut,
    shape=(3, 2, 5),
    rows=lambda layer, x: (
        (x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()).flatten(0, 1).T[..., None]
    ),
    bias=None,
    arrange=lambda values: values.reshape(-1, 1),
)
case = scale_case
CASES = [
    norm,
    case("vector", (5,), (3, 2, 5)),
    case("vector, other order", (5,), (7, 5), lambda w, x: x * w),
    case("vector, torch.mul", (3,), (4, 3), torch.mul),
    case("vector, torch.multiply", (3,), (4, 3), lambda w, x: torch.multiply(x, other=w)),
    case("vector, method", (3,), (4, 3), lambda w, x: x.mul(w)),
    case("vector, method of the parameter", (3,), (4, 3), lambda w, x: w.multiply(x)),
    case("one sample", (5,), (5,)),
    case("channels of images", (3, 1, 1), (2, 3, 4, 5), axis=1),
    case("channels with a batch axis", (1, 3, 1), (4, 3, 2), axis=1),
    case("two axes", (2, 3), (4, 2, 3), arrange=lambda y: y.flatten(-2)),
    case("two axes apart", (2, 1, 3), (4, 2, 5, 3), arrange=lambda y: y.movedim(1, 2).flatten(-2)),
    case("activations of fewer axes", (4, 3), (3,), arrange=torch.flatten),
    case("activations broadcast", (5,), (4, 1)),
    case("scalar", (), (4, 3), arrange=lambda y: y[None], axis=0),
    case("one element", (1,), (4, 3), arrange=lambda y: y[None], axis=0),
]


@every_law(CASES)
def test_scale(laws):
    laws.check()


class Uses(nn.Module):
    """A parameter in a product that is no scale of activations, or cannot be observed."""

    def __init__(self, use):
        super().__init__()
        self.weight, self.other = (nn.Parameter(torch.randn(3)) for _ in range(2))
        self.register_buffer("mask", torch.ones(3))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        """Use it."""
        return self.use(self, x.clone())


REASONS = {
    "two parameters": (lambda m, x: x + m.weight * m.other, "two parameters are multiplied"),
    "constant": (lambda m, x: x + 2 * m.weight, "it is multiplied by no activation"),
    "buffer": (lambda m, x: x + m.weight * m.mask, "it is multiplied by no activation"),
    "computed": (lambda m, x: x + m.weight * m.other.tanh(), "it is multiplied by no activation"),
    "in place": (lambda m, x: x.mul_(m.weight), "the product is taken in place"),
    "augmented": (lambda m, x: operator.imul(x, m.weight), "the product is taken in place"),
    "view": (lambda m, x: m.weight.unsqueeze(0) * x, "another weight is computed from it by unsq"),
    "square": (lambda m, x: m.weight * m.weight * x, "two parameters are multiplied"),
}


@pytest.mark.parametrize("name", REASONS)
def test_other_products_are_left_with_a_reason(name):
    use, reason = REASONS[name]
    model, x = Uses(use), torch.randn(2, 3)
    reasons = {skip.name: skip.reason for skip in sngd.explain(model).skips}
    assert reasons["weight"].startswith(reason)
    torch.testing.assert_close(sngd.reconstruct(model)(x), model(x))


def test_the_real_and_the_imaginary_part_are_rows():
    net = sngd.reconstruct(Product((3,), operator.mul, same), Config(max_rows=None))
    x = torch.randn(4, 3, dtype=torch.complex128)
    net(x)
    fisher = sngd.fisher_layers(sngd.refresh_(net))["weight"]
    expected = torch.view_as_real(x).square().sum(-1).mean(0) / 2
    torch.testing.assert_close(fisher.factor.flatten(), expected)


def test_integers_and_masks_scale_too():
    net = sngd.reconstruct(Product((3,), operator.mul, same), Config(max_rows=None))
    net(torch.tensor([[True, False, True], [True, False, False]]))
    fisher = sngd.fisher_layers(sngd.refresh_(net))["weight"]
    torch.testing.assert_close(fisher.factor.flatten(), torch.tensor([1.0, 0.0, 0.5]))


class Branching(nn.Module):
    """Runs as it is, which leaves a vector to plain descent."""

    def __init__(self):
        super().__init__()
        self.scale, self.weight = nn.Parameter(torch.ones(3)), nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Branch on the input."""
        x = self.scale * (x @ self.weight)
        return x if x.sum() > 0 else -x


def test_the_plan_of_a_scale():
    (site,) = sngd.explain(Product((3, 1), operator.mul, same)).sites
    assert (site.rule, site.bias_name, site.size, site.layout.groups) == ("scale", None, 1, 3)
    assert [site.rule for site in sngd.explain(Branching()).sites if site.name == "scale"] == [
        "scale"
    ]
