"""Modules whose forward runs as it is: weights observe what they meet, and stay what they are."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck

import sngd_compile as sngd
from sngd_compile import Config
from sngd_compile.modules.folded_weight import FoldedWeight, GuardedWeight
from sngd_compile.modules.writable_weight import WritableWeight

pytestmark = pytest.mark.usefixtures("float64")
EVERY_ROW = Config(max_rows=None, observe_every=1, early_refreshes=(1,))


class Free(nn.Module):
    """A module that branches on its input; `use` says what it does with its parameters."""

    def __init__(self, *shapes: tuple[int, ...]):
        super().__init__()
        for index, shape in enumerate(shapes or [(4, 3)]):
            setattr(self, "abc"[index], nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor, **options: object) -> Tensor:
        """Branch, then use."""
        return self.use(x, **options) if x.sum() < 1e9 else x

    def use(self, x: Tensor) -> Tensor:
        """Apply a linear layer."""
        return F.linear(x, self.a)


def free(use, *shapes: tuple[int, ...]) -> nn.Module:
    """Make a module of this use."""
    return type("Written", (Free,), {"use": use})(*shapes)


def observed(model: nn.Module, *args, **kwargs) -> dict[str, Tensor]:
    """Reconstruct, check the function before and after a refresh, return the factors."""
    net = sngd.reconstruct(model, EVERY_ROW)
    assert not sngd.graph(net)
    outputs, expected = net(*args, **kwargs), model(*args, **kwargs)
    torch.testing.assert_close(outputs, expected)
    assert type(outputs) is Tensor
    found = torch.autograd.grad(outputs.square().sum(), list(net.parameters()))
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    torch.testing.assert_close(found, wanted)
    net(*args, **kwargs)
    sngd.refresh_(net)
    torch.testing.assert_close(net(*args, **kwargs), expected)
    torch.testing.assert_close(sngd.fold(net)(*args, **kwargs), expected)
    assert not any(fisher.unmatched for fisher in sngd.fisher_layers(net).values())
    return {name: fisher.factor for name, fisher in sngd.fisher_layers(net).items()}


def moment(rows: Tensor) -> Tensor:
    """Return the mean outer product."""
    return rows.T @ rows / len(rows)


X = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, 2.0]], dtype=torch.float64)


def test_control_flow_on_data():
    def use(self, x):
        return F.linear(x, self.a) if x.sum() > 0 else F.linear(x, self.b)

    model = free(use, (4, 3), (4, 3))
    net = sngd.reconstruct(model, EVERY_ROW)
    for x in (X, -X, 2 * X):
        torch.testing.assert_close(net(x), model(x))
    factors = {n: f.factor for n, f in sngd.fisher_layers(sngd.refresh_(net)).items()}
    torch.testing.assert_close(factors["a"], moment(torch.cat([X, 2 * X])))
    torch.testing.assert_close(factors["b"], moment(-X))


def test_keyword_arguments():
    model = free(lambda self, x, scale: scale * F.linear(input=x, weight=self.a))
    torch.testing.assert_close(observed(model, X, scale=2.0)["a"], moment(X))


@pytest.mark.parametrize(
    "use",
    [
        lambda self, x: sum(F.linear(x, part) for part in self.a.chunk(2)),
        lambda self, x: sum(F.linear(x, part) for part in torch.split(self.a, [2, 2])),
        lambda self, x: F.linear(x, self.a[:2]) + F.linear(x, self.a[2:]),
        lambda self, x: x @ self.a.T.chunk(2, dim=1)[0] + x @ self.a.T.chunk(2, -1)[1],
        lambda self, x: F.linear(x, self.a.to(x.dtype).contiguous()),
        lambda self, x: x @ self.a.transpose(0, 1),
        lambda self, x: torch.einsum("nk,ok->no", x, self.a),
        lambda self, x: (self.a @ x.mT).mT,
    ],
)
def test_parts_and_views_of_a_matrix(use):
    torch.testing.assert_close(observed(free(use), X)["a"], moment(X))


@pytest.mark.parametrize(
    "use",
    [
        lambda self, x: torch.stack([F.linear(x[i], w) for i, w in enumerate(self.a)]),
        lambda self, x: torch.stack([F.linear(x[i], w) for i, w in enumerate(self.a.unbind(0))]),
        lambda self, x: torch.stack([F.linear(x[i], self.a[i]) for i in range(2)]),
        lambda self, x: torch.stack([F.linear(x[i], self.a[i - 2]) for i in range(2)]),
        lambda self, x: torch.stack([F.linear(x[i], self.a.select(0, i)) for i in range(2)]),
        lambda self, x: torch.stack([x[i] @ self.a.mT[i] for i in range(2)]),
        lambda self, x: torch.stack([x[i] @ self.a[i].t() for i in range(2)]),
        lambda self, x: torch.bmm(x, self.a.transpose(1, 2)),
        lambda self, x: torch.einsum("gnk,gok->gno", x, self.a),
        lambda self, x: torch.cat([x @ part.mT for part in self.a.chunk(2, 1)], -1),
    ],
)
def test_stacked_experts(use):
    x = torch.stack([X, 2 * X - 1])
    factor = observed(free(use, (2, 4, 3)), x)["a"]
    counted = factor / factor[0].trace() * moment(x[0]).trace()  # rows of all groups are counted
    torch.testing.assert_close(counted, torch.stack([moment(x[0]), moment(x[1])]))


def inner(self, x):
    return torch.mm(x, self.a)


@pytest.mark.parametrize(
    "use",
    [
        lambda self, x: x @ self.a,
        lambda self, x: torch.matmul(x, self.a),
        lambda self, x: x.mm(self.a),
        lambda self, x: torch.addmm(x[:, :1], x, self.a),
        lambda self, x: sum(x @ self.a for _ in range(1)),
        inner,
    ],
)
def test_a_weight_whose_inputs_come_first(use):
    torch.testing.assert_close(observed(free(use, (3, 5)), X)["a"], moment(X))


@pytest.mark.parametrize(
    "use",
    [
        lambda self, x: torch.stack([x[i] @ self.a[i] for i in range(2)]),
        lambda self, x: torch.bmm(x, self.a),
    ],
)
def test_experts_whose_inputs_come_first(use):
    x = torch.stack([X, 2 * X - 1])
    factor = observed(free(use, (2, 3, 5)), x)["a"]
    assert factor.shape == (2, 3, 3)
    torch.testing.assert_close(factor[1] / factor[1].trace(), moment(x[1]) / moment(x[1]).trace())


class Container(nn.Module):
    """Parameters in lists and dictionaries, which a parent reads."""

    def __init__(self):
        super().__init__()
        self.several = nn.ParameterList([nn.Parameter(torch.randn(3, 3)) for _ in range(2)])
        self.named = nn.ParameterDict({"out": nn.Parameter(torch.randn(4, 3))})

    def forward(self, x: Tensor) -> Tensor:
        """Apply them all."""
        for weight in self.several:
            x = F.linear(x, weight).tanh()
        return x @ self.named["out"].t()


def test_parameter_lists_and_dictionaries():
    model = Container()
    factors = observed(model, X)
    assert set(factors) == {"several.0", "several.1", "named.out"}
    torch.testing.assert_close(factors["several.0"], moment(X))
    first = F.linear(X, model.several[0]).tanh().detach()
    torch.testing.assert_close(factors["several.1"], moment(first))


def test_nothing_is_observed_outside_training():
    net = sngd.reconstruct(Free(), EVERY_ROW)
    fisher = sngd.fisher_layers(net)["a"]
    with torch.no_grad():
        net(X)
    net.eval()(X)
    net.train()
    F.linear(X, net.a)
    assert type(net.a) is WritableWeight
    assert fisher.rows_seen == 0
    net(X)
    assert fisher.rows_seen == 2


def test_what_a_forward_reads():
    seen = []
    net = sngd.reconstruct(free(lambda self, x: (seen.append(self.a), F.linear(x, self.a))[1]))
    net(X)
    with torch.no_grad():
        net(X)
    net.eval()(X)
    assert [type(weight) for weight in seen] == [FoldedWeight, GuardedWeight, Tensor]


def test_autocast():
    net = sngd.reconstruct(Free().float(), EVERY_ROW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = net(X.float())
    assert outputs.dtype == torch.bfloat16
    fisher = sngd.fisher_layers(sngd.refresh_(net))["a"]
    assert fisher.factor.dtype == torch.float32
    torch.testing.assert_close(fisher.factor.double(), moment(X), rtol=1e-2, atol=1e-2)


def test_a_use_that_no_rule_understands_is_named():
    # What kind of index it is shows when the forward runs.
    net = sngd.reconstruct(free(lambda self, x: x.sum() * self.a[self.a > 0]), EVERY_ROW)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(X).sum().backward()
    with pytest.warns(sngd.SngdWarning, match=r"a: no input .* it enters .*getitem.* at .*py:\d+"):
        optimizer.step()


def test_reading_a_shape_is_no_use():
    net = sngd.reconstruct(free(lambda self, x: F.linear(x, self.a) * self.a.shape[0]), EVERY_ROW)
    net(X)
    assert sngd.fisher_layers(net)["a"].unmatched == ""


def test_second_derivatives():
    net = sngd.reconstruct(free(lambda self, x: F.linear(x, self.a).tanh()), EVERY_ROW)
    x = X.clone().requires_grad_()
    net(x)
    sngd.refresh_(net)
    assert gradcheck(net, (x,))
    first = torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]
    first.square().sum().backward()
    plain = sngd.fold(net)
    y = X.clone().requires_grad_()
    expected = torch.autograd.grad(plain(y).sum(), y, create_graph=True)[0]
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    root = sngd.fisher_layers(net)["a"].root
    torch.testing.assert_close(net.a_prime.grad, plain.a.grad @ root.T)
