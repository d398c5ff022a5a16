"""What the plan promises of a forward that runs as it is, is what is observed when it runs."""

import logging
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import sngd_compile as sngd
from sngd_compile import Config

pytestmark = pytest.mark.usefixtures("float64")
EVERY_ROW = Config(max_rows=None, observe_every=1, early_refreshes=())
X = torch.randn(5, 3, dtype=torch.float64)
SAID: list[int] = []


class Branching(nn.Module):
    """A forward that no graph repeats; `use` says what it does with `a`, `b` and its children."""

    def __init__(self, *shapes: tuple[int, ...], **children: nn.Module):
        super().__init__()
        for name, shape in zip("abc", shapes, strict=False):
            setattr(self, name, nn.Parameter(torch.randn(shape)))
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x: Tensor) -> Tensor:
        """Branch, then use."""
        return self.use(x) if x.sum() < 1e9 else x

    def use(self, x: Tensor) -> Tensor:
        """Be overridden."""
        raise NotImplementedError


def causal(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve along the samples, each channel by itself, as state space models do."""
    x = x.T[None]
    return F.conv1d(x, weight.unsqueeze(1), bias, groups=x.shape[1])


def doubled(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, 2 * layer.weight, layer.bias)


def branching(use, *shapes, **children) -> nn.Module:
    return type("Written", (Branching,), {"use": use})(*shapes, **children)


def kept_promises(model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """Check that exactly what is planned is observed; return the factors."""
    plan = sngd.explain(model)
    net = sngd.reconstruct(model, EVERY_ROW)
    for _ in range(2):
        net(*inputs)
    layers = sngd.fisher_layers(sngd.refresh_(net))
    assert {site.name for site in plan.sites} == set(layers)
    assert all(layer.rows_seen and not layer.unmatched for layer in layers.values())
    assert all(skip.reason for skip in plan.skips)
    torch.testing.assert_close(net(*inputs), model(*inputs))
    return {name: layer.factor for name, layer in layers.items()}


def image(x: Tensor) -> Tensor:
    return torch.outer(x[:, 0], torch.linspace(-1, 2, 30, dtype=x.dtype)).view(5, 2, 3, 5)


LINEAR = {
    "convolution padded by its input's size": (
        lambda self, x: F.conv2d(
            F.pad(image(x), [0, max(x.shape[-1] - 1, 0)]), self.a, self.b, stride=2, dilation=(1, 2)
        ),
        ((4, 2, 3, 2), (4,)),
    ),
    "convolution": (lambda self, x: F.conv1d(image(x)[:, 0], self.a, None, 2), ((4, 3, 2),)),
    "depthwise": (lambda self, x: F.conv2d(image(x), self.a, groups=2), ((2, 1, 2, 3),)),
    "depthwise by the channels of its input": (
        lambda self, x: F.conv1d(x[None].mT, self.a[:, None], groups=x.shape[1]),
        ((3, 2),),
    ),
    "transposed": (lambda self, x: F.conv_transpose2d(image(x), self.a), ((2, 3, 2, 2),)),
    "transposed, depthwise by the channels of its input": (
        lambda self, x: F.conv_transpose1d(x[None].mT, self.a[:, None], groups=x.shape[1]),
        ((3, 2),),
    ),
    "einsum": (lambda self, x: torch.einsum("nk,kho->nho", x, self.a), ((3, 2, 4),)),
    "einsum outwards": (
        lambda self, x: torch.einsum("nhk,ohk->no", x[:, None].expand(-1, 2, 3), self.a),
        ((4, 2, 3),),
    ),
    "flattened": (lambda self, x: F.linear(x, self.a.flatten(0, 1)), ((2, 4, 3),)),
    "bilinear": (lambda self, x: F.bilinear(x, x + 1, self.a), ((2, 3, 3),)),
    "two times": (lambda self, x: F.linear(F.linear(x, self.a).tanh(), self.a), ((3, 3),)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_a_factor_is_that_of_the_jacobian(name):
    use, shapes = LINEAR[name]
    model = branching(use, *shapes)
    factor = kept_promises(model, X)["a"]
    if name == "two times":
        return  # each use is a layer of its own
    fisher = sngd.fisher_layers(sngd.reconstruct(model))["a"]
    names, values = zip(*((n, p.detach()) for n, p in model.named_parameters()), strict=True)

    def outputs(*given: Tensor) -> Tensor:
        return functional_call(model, dict(zip(names, given, strict=True)), (X,)).flatten()

    jacobians = jacobian(outputs, values)
    rows = torch.stack([fisher.layout.matrices(j) for j in jacobians[0]])
    rows = rows if rows.dim() == 4 else rows[:, None]
    if fisher.has_bias:
        ones = jacobians[1].view(len(rows), 1, -1, 1)
        rows = torch.cat([rows, ones], -1)
    # Each output of a linear layer has one row: that of its own output unit.
    moments = torch.einsum("ngok,ngol->gkl", rows, rows)
    moments = moments / moments.diagonal(dim1=1, dim2=2).sum()
    found = factor if factor.dim() == 3 else factor[None]
    found = found / found.diagonal(dim1=1, dim2=2).sum()
    torch.testing.assert_close(found, moments, rtol=1e-11, atol=1e-12)


def counts(model: nn.Module, name: str = "a") -> list[float]:
    factor = kept_promises(model, X)[name]
    return (factor / factor.sum() * 12).flatten().tolist()


@pytest.mark.parametrize(
    ("use", "shape", "expected"),
    [
        (lambda self, x: x.sum() * self.a[torch.tensor([0, 2, 2])], (4, 2), [4, 0, 8, 0]),
        (lambda self, x: x.sum() * self.a[torch.tensor([[-1], [1]])], (3, 2, 2), [0, 6, 6]),
        (lambda self, x: x.sum() * self.a[:, torch.tensor([1, 1, -3])], (2, 3), [4, 8, 0]),
        (lambda self, x: x.sum() * self.a[[0, 0, 1]], (3, 2), [8, 4, 0]),
        (lambda self, x: x[:2, :2] + self.a[1:3], (4, 2), [0, 6, 6, 0]),
        (lambda self, x: x[:2, :2] + self.a[:, 1:3], (2, 4), [0, 6, 6, 0]),
        (lambda self, x: x.sum() * self.a[torch.arange(4) % 2 == 0], (4, 2), [6, 0, 6, 0]),
        (lambda self, x: F.embedding(torch.tensor([0, 1, 1]), self.a), (3, 2), [4, 8, 0]),
    ],
)
def test_a_look_up_is_counted(use, shape, expected):
    torch.testing.assert_close(counts(branching(use, shape)), [float(n) for n in expected])


@pytest.mark.parametrize(
    ("use", "shape"),
    [
        (lambda self, x: x * self.a, (3,)),
        (lambda self, x: x * self.a.flatten(), (1, 3)),
        (lambda self, x: x * self.a[None, :], (3,)),
        (lambda self, x: self.a.view(1, -1) * x, (3, 1)),
    ],
)
def test_a_learned_factor_has_the_mean_square_of_what_it_multiplies(use, shape):
    factor = kept_promises(branching(use, shape), X)["a"]
    torch.testing.assert_close(factor.flatten(), X.square().mean(0))


@pytest.mark.parametrize(
    ("use", "shape", "reason"),
    [
        (lambda self, x: F.linear(x, self.a.clamp(-1, 1)), (2, 3), "computed from it by clamp"),
        (lambda self, x: x * self.a.clamp(max=4).exp(), (1,), "computed from it by clamp"),
        (lambda self, x: x @ self.a.repeat(1, 2), (3, 2), "along its columns"),
        (lambda self, x: torch.cat([self.a, x]), (1, 3), "multiple of the identity"),
        (lambda self, x: torch.where(x > 0, self.a, x), (1, 3), "multiple of the identity"),
        (lambda self, x: x + self.a, (3,), "added to activations"),
        (lambda self, x: x - self.a.view(3), (1, 3), "added to activations"),
        (lambda self, x: (x, self.a.detach())[0], (3,), "does not use it"),
        (lambda self, x: torch.cdist(x, self.a), (4, 3), "no rule for cdist"),
        (lambda self, x: F.linear(x, self.a) + self.a.sum(), (2, 3), "computed from it by sum"),
        (
            lambda self, x: F.linear(x, self.a) if x.sum() > 1e9 else self.a.exp().sum() + x,
            (2, 3),
            "computed from it by exp",
        ),
        (lambda self, x: F.interpolate(self.a[None], 5).sum() + x, (2, 3), "interpolate"),
        (lambda self, x: F.linear(x[:, :2], self.a[:, 1:3]), (2, 3), "a slice of its inputs"),
        (lambda self, x: x[:, :2] @ self.a[:, :2].T, (2, 3), "a slice of its inputs"),
        (lambda self, x: x * self.a[:, 1], (3, 2), "a slice of its inputs"),
        (lambda self, x: F.linear(x, F.normalize(self.a)), (2, 3), "computed from it by normalize"),
    ],
)
def test_what_cannot_be_observed_stays_plain_and_says_why(use, shape, reason):
    model = branching(use, shape)
    assert kept_promises(model, X) == {}
    (skip,) = sngd.explain(model).skips
    assert reason in skip.reason


@pytest.mark.parametrize(
    ("use", "children", "observed"),
    [
        (lambda self, x: F.linear(x, self.one.weight.clamp(-1, 1)), "one", set()),
        (lambda self, x: F.linear(x, self.one.weight), "one", {"one.weight"}),
        (lambda self, x: self.one(x) @ self.one.weight, "one", {"one.weight"}),
        (lambda self, x: self.one(x) + self.one.bias, "one", {"one.weight"}),
        (lambda self, x: self.one(x) * self.one.weight.abs().sum(), "one", set()),
        (lambda self, x: F.linear(x, F.normalize(self.one.weight)), "one", set()),
        (lambda self, x: doubled(self.one, x), "one", set()),
        (
            lambda self, x: causal(x, self.conv.weight.squeeze(1), self.conv.bias),
            "conv",
            {"conv.weight"},
        ),
        (
            lambda self, x: self.many[0](x) + self.many[1].weight[0].tanh(),
            "many",
            {f"many.{i}.weight" for i in (0, 1)},
        ),
    ],
)
def test_a_child_s_weight_counts_what_the_forward_above_does_with_it(use, children, observed):
    made = {
        "one": nn.Linear(3, 3),
        "conv": nn.Conv1d(3, 3, 2, groups=3),
        "many": nn.ModuleList([nn.Linear(3, 3) for _ in "ab"]),
    }
    model = branching(use, **{children: made[children]})
    assert set(kept_promises(model, X)) == observed


def test_a_bias_that_is_added_elsewhere_too_does_not_join():
    model = branching(lambda self, x: self.one(x) + self.one.bias, one=nn.Linear(3, 3))
    (site,) = sngd.explain(model).sites
    assert site.bias_name is None


class HandsOn(nn.Module):
    """A forward that hands on whatever it gets."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)

    def inner(self, x, scale):
        return F.linear(x, self.weight) * scale if x.sum() < 1e9 else x


class Optional(nn.Module):
    """A weight that an optional argument alone reaches, in one of many loops and branches."""

    def __init__(self):
        super().__init__()
        self.weight, self.other = (nn.Parameter(torch.randn(3, 3)) for _ in range(2))

    def forward(self, x, mask=None):
        first, *_ = x.shape
        while first > 1:
            first = first // 2
        for _ in range(first):
            x = x.tanh()
        if mask is not None and mask.sum() > 0:
            with torch.no_grad():
                x = x * mask
            return F.linear(x, self.other)
        try:
            return F.linear(x, self.weight)
        except RuntimeError:
            return x


def test_arguments_that_are_handed_on_and_those_left_out():
    scale = torch.tensor(2.0)
    assert set(kept_promises(HandsOn(), X, scale)) == {"weight"}
    sites = [site.name for site in sngd.explain(Optional()).sites]
    assert sites == ["weight", "other"]


class Loud(nn.Module):
    """Prints, logs, warns, draws and counts on its way."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.calls = [0]
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        print("called")
        warnings.warn("called", stacklevel=2)
        logging.getLogger("loud").warning("called")
        SAID.append(1)
        self.calls[0] += 1
        self.seen += 1
        torch.randn(3)
        return F.linear(x, self.weight)


def test_a_rehearsal_leaves_no_trace(capsys, caplog):
    model, state = Loud(), torch.get_rng_state()
    plan = sngd.explain(model)
    assert [site.name for site in plan.sites] == ["weight"]
    assert (SAID, model.calls, float(model.seen)) == ([], [0], 0.0)
    assert not capsys.readouterr().out
    assert not [record for record in caplog.records if record.name == "loud"]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_plan_is_the_same_each_time():
    def use(self, x):
        return F.linear(x, self.a) if torch.rand(()) > 0.5 else F.linear(x, self.b)

    plans = {str(sngd.explain(branching(use, (2, 3), (2, 3)))) for _ in range(8)}
    assert len(plans) == 1
    assert "2 weights" in plans.pop()


def test_checkpointing_counts_nothing_twice():
    def use(self, x):
        return checkpoint(lambda y: F.linear(y, self.a), x, use_reentrant=False)

    net = sngd.reconstruct(branching(use, (2, 3)), EVERY_ROW)
    net(X.clone().requires_grad_()).square().sum().backward()
    layer = sngd.fisher_layers(sngd.refresh_(net))["a"]
    assert layer.rows_seen == len(X)
    torch.testing.assert_close(layer.factor, X.T @ X / len(X))
