"""One weight used in several ways is one site, whose factor is the exact moment of all uses."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jacrev

import sngd_compile as sngd
from laws.subject import ABSOLUTE, RELATIVE, configuration
from laws.suite import close

pytestmark = pytest.mark.usefixtures("float64")
Use = Callable[[Tensor], Tensor]


class Language(nn.Module):
    """A table `[V, E]` that is also the head."""

    def __init__(self, bias: bool = False):
        super().__init__()
        self.table, self.inner = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=bias)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        """Predict from indices."""
        return self.head(self.inner(self.table(x)).tanh())

    def uses(self, x: Tensor) -> list[Use]:
        """Write both uses out, their inputs held."""
        hidden = self.inner(self.table(x)).tanh().detach().reshape(-1, 4)
        return [lambda w: F.embedding(x.flatten(), w), lambda w: F.linear(hidden, w)]


class Padded(Language):
    """The same with an entry that gets no gradient from the look-up."""

    def __init__(self):
        super().__init__(bias=True)
        self.table.padding_idx = 2

    def uses(self, x: Tensor) -> list[Use]:
        """Leave the padding out of the Jacobian."""
        look_up, head = super().uses(x)
        kept = (x.flatten() != 2)[:, None]
        return [lambda w: look_up(w) * kept, head]


class Autoencoder(nn.Module):
    """A decoder that is the encoder's transpose."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Encode and decode."""
        return F.linear(F.linear(x, self.weight).tanh(), self.weight.t())

    def uses(self, x: Tensor) -> list[Use]:
        """Write both uses out."""
        hidden = F.linear(x, self.weight).tanh().detach()
        return [lambda w: F.linear(x, w), lambda w: hidden @ w]


class Branching(Autoencoder):
    """The same, captured by no graph."""

    def forward(self, x: Tensor) -> Tensor:
        """Encode and decode, on a condition."""
        hidden = F.linear(x, self.weight).tanh()
        return F.linear(hidden, self.weight.t()) if hidden.sum() < 1e9 else hidden


class Repeated(nn.Module):
    """One module called three times, once under another name."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        self.again = self.layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return self.again(self.layer(self.layer(x).tanh())[1:])

    def uses(self, x: Tensor) -> list[Use]:
        """Write the calls out."""
        first = self.layer(x).tanh().detach()
        second = self.layer(first)[1:].detach()
        return [lambda w, x=rows: F.linear(x, w) for rows in (x, first, second)]


class Named(nn.Module):
    """One parameter of two modules, and under two names of one."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.own, self.other = self.first.weight, self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """Apply all."""
        hidden = self.second(self.first(x).tanh())
        return F.linear(hidden, self.own) + F.linear(2 * x, self.other)

    def uses(self, x: Tensor) -> list[Use]:
        """Write the calls out."""
        first = self.first(x).tanh().detach()
        inputs = (x, first, self.second(first).detach(), 2 * x)
        return [lambda w, x=rows: F.linear(x, w) for rows in inputs]


INDICES = torch.tensor([[0, 3, 3, 2], [6, 2, 0, 3]])
MODELS = {
    "language": (Language, INDICES, "table.weight"),
    "language with bias": (lambda: Language(bias=True), INDICES, "table.weight"),
    "padding": (Padded, INDICES, "table.weight"),
    "autoencoder": (Autoencoder, None, "weight"),
    "branching": (Branching, None, "weight"),
    "repeated": (Repeated, None, "layer.weight"),
    "named": (Named, None, "own"),
}


def made(kind: str) -> tuple[nn.Module, Tensor, str]:
    """Make a model, its input and the name of the weight."""
    build, x, name = MODELS[kind]
    model = build()
    return model, torch.randn(6, model.state_dict()[name].shape[1]) if x is None else x, name


def exact_moment(model: nn.Module, x: Tensor, weight: Tensor) -> tuple[Tensor, int]:
    """Sum the Jacobians' outer products over uses, outputs and rows of W; take means."""
    weight, total, rows = weight.detach(), 0.0, 0
    for use in model.uses(x):
        jacobian = jacrev(use)(weight).flatten(0, 2)  # [N C O, K]
        total = total + jacobian.T @ jacobian / len(weight)
        rows += len(use(weight))
    return total / rows, rows


@pytest.mark.parametrize("kind", MODELS)
def test_one_site_with_the_exact_moment(kind):
    model, x, name = made(kind)
    net = sngd.reconstruct(model, configuration("cholesky"))
    layers = sngd.fisher_layers(net)
    assert len({id(fisher) for fisher in layers.values()}) == 1 + ("inner.weight" in layers)
    net(x)
    sngd.refresh_(net)
    expected, rows = exact_moment(model, x, model.get_parameter(name))
    close(layers[name].factor, expected)
    assert layers[name].rows_seen == rows


@pytest.mark.parametrize("kind", MODELS)
def test_a_step_is_natural(kind):
    model, x, name = made(kind)
    net = sngd.reconstruct(model, configuration("symmetric"))
    net(x)
    plain = sngd.fold(sngd.refresh_(net))
    close(plain(x), model(x))
    plain(x).sin().sum().backward()
    weight = plain.get_parameter(name)
    factor, _ = exact_moment(model, x, weight)
    damping = RELATIVE * factor.trace() + ABSOLUTE
    inverse = torch.linalg.inv(factor + damping * torch.eye(len(factor)))
    expected = weight - 0.3 * weight.grad @ inverse
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    net(x).sin().sum().backward()
    optimizer.step()
    close(sngd.fold(net).get_parameter(name), expected)


@pytest.mark.parametrize("kind", MODELS)
def test_training_copies_files_and_folds_keep_the_tie(kind):
    model, x, _ = made(kind)
    net = sngd.reconstruct(model, configuration("cholesky"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = (net(x) - 0.5).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    expected = net(x)
    close(sngd.refresh_(net)(x), expected)
    plain = sngd.fold(net)
    close(plain(x), expected)
    assert len(list(plain.parameters())) == len(list(model.parameters()))
    assert list(plain.state_dict()) == list(model.state_dict())
    fresh = sngd.reconstruct(made(kind)[0])
    fresh.load_state_dict(net.state_dict())
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    copied = [copy.deepcopy(net), fresh, torch.load(file, weights_only=False)]
    for other in copied:
        close(other(x), expected)
        assert len(list(other.parameters())) == len(list(model.parameters()))
        layers = sngd.fisher_layers(other)
        groups = {id(fisher) for fisher in layers.values()}
        assert len(groups) == len({id(f) for f in sngd.fisher_layers(net).values()})
    net.load_state_dict(model.state_dict(), strict=False)
    close(net(x), model(x))


def test_the_plan_names_every_place():
    plan = sngd.explain(Language())
    (site,) = [site for site in plan.sites if site.name == "table.weight"]
    assert site.parameter_names == ["table.weight", "head.weight"]
    assert (site.kind, site.layout.matrix) == ("shared", (7, 4))
