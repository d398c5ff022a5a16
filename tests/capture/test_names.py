"""Names that torch takes and Python does not: data, never executed; they work like others."""

import builtins
import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from sngd_compile.capture.module_graph import is_plain
from sngd_compile.errors import shown

KINDS = ("parameter", "buffer", "ParameterDict", "ModuleDict")
EXECUTED = "a_name_was_executed"
HOSTILE = f'a", 0) or setattr(__import__("builtins"), "{EXECUTED}", True) or (lambda _: 0)("'
STATEMENT = f"a\n    setattr(__import__('builtins'), '{EXECUTED}', True)\n    x"
NAMES = {
    "plain": "weights",
    "keyword": "class",
    "constant": "None",
    "self": "self",
    "argument": "x",
    "space": "a b",
    "double quote": 'a"b',
    "quote": "it's",
    "both quotes": "'\"",
    "backslash": "tail\\",
    "newline": "new\nline",
    "control": "\x1b[31mred\x07",
    "direction": "\u202egnp",
    "accent": "naïve",
    "normalised": "ﬁn",  # Python reads it as `fin`
    "script": "重み",
    "surrogate": "\udc80",
    "number": "0",
    "braces": "{x} %s",
    "comment": "a # b",
    "long": "n" * 5000,
    "call": HOSTILE,
    "statement": STATEMENT,
}


class Own(nn.Module):
    """A product with a weight of a plain name, then with one of the given name, `[N, 3]`."""

    def __init__(self, kind: str, name: str):
        super().__init__()
        self.kind, self.key = kind, name
        self.own = nn.Parameter(torch.randn(3, 3))
        if kind == "parameter":
            self.register_parameter(name, nn.Parameter(torch.randn(3, 3)))
        elif kind == "buffer":
            self.register_buffer(name, torch.randn(3, 3))
        elif kind == "ParameterDict":
            self.members = nn.ParameterDict({name: nn.Parameter(torch.randn(3, 3))})
        else:
            self.members = nn.ModuleDict({name: nn.Linear(3, 3)})

    def forward(self, x):
        x = x @ self.own
        if self.kind == "ModuleDict":
            return self.members[self.key](x)
        return x @ (
            self.members[self.key] if self.kind == "ParameterDict" else getattr(self, self.key)
        )


def every_kind(name: str) -> nn.Module:
    """Make a network in which parameters, buffers and modules have the name."""
    return nn.Sequential(*(Own(kind, name) for kind in KINDS))


@pytest.fixture(autouse=True)
def _nothing_executed():
    yield
    assert not hasattr(builtins, EXECUTED)


@pytest.fixture(params=NAMES.values(), ids=NAMES.keys())
def name(request):
    return request.param


def _same(one, other, x):
    torch.testing.assert_close(one(x), other(x), rtol=1e-4, atol=1e-5)


def test_a_name_goes_through_everything(name):
    model, x = every_kind(name), torch.randn(2, 3)
    net = sngd.reconstruct(model)
    assert {str(number) for number in range(len(KINDS))} <= sngd.graph(net).keys()
    _same(net, model, x)

    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    assert all(not layer.unseen for layer in sngd.fisher_layers(net).values())

    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), sngd.fold(net)):
        _same(again, net, x)
    net[0].step_number = 1  # its forward is captured again
    other = sngd.reconstruct(every_kind(name))
    other.load_state_dict(net.state_dict())
    _same(other, net, x)
    assert sngd.fold(net).state_dict().keys() == model.state_dict().keys()


def test_a_name_is_shown_on_one_line(name):
    model = every_kind(name)
    net = sngd.reconstruct(model)
    texts = [str(sngd.explain(model)), str(sngd.explain(net)), str(sngd.graph(net))]
    for text in texts:
        assert all(line.isprintable() for line in text.split("\n"))
    assert all(shown(name) in text for text in texts)


COMPILED = ("keyword", "double quote", "newline", "normalised", "surrogate", "call", "statement")


def _compiled(model, x, **options):
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.compile(model, fullgraph=True, **options)(x)


@pytest.mark.parametrize("backend", ["eager", "sngd"])
@pytest.mark.parametrize("name", [NAMES[key] for key in COMPILED], ids=COMPILED)
def test_a_name_compiles(name, backend):
    model, x = every_kind(name), torch.randn(2, 3)
    expected = model(x)
    if backend == "eager":
        found = _compiled(sngd.reconstruct(model), x, backend="eager")
    else:
        found = _compiled(model, x, backend="sngd", options={"inner_backend": "eager"})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Passing(nn.Module):
    """Hands its child an argument by the name of one of its children."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.heads = nn.ModuleDict({HOSTILE: nn.Linear(3, 3)})
        self.sum = Sum()

    def forward(self, x):
        x = x @ self.weight
        return self.sum(**{key: head(x) for key, head in self.heads.items()})


class Sum(nn.Module):
    def forward(self, **named):
        return sum(named.values())


def test_the_name_of_an_argument_is_not_executed():
    model, x = Passing(), torch.randn(2, 3)
    net = sngd.reconstruct(model)
    _same(net, model, x)
    assert "passes an argument by the name" in str(sngd.explain(model))


class Dotted(nn.Module):
    """Two children whose qualified names are the same."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.a = nn.ModuleDict({"b": nn.Linear(3, 3)})
        setattr(self, "a.b", nn.Linear(3, 3))

    def forward(self, x):
        return getattr(self, "a.b")(x @ self.weight)


def test_a_dot_inside_a_name_is_not_taken_for_a_path():
    model, x = Dotted(), torch.randn(2, 3)
    with pytest.raises(sngd.SngdError, match=r"a\.b\.weight"):
        sngd.reconstruct(model)  # two parameters of one qualified name
    del model.a
    _same(sngd.reconstruct(model), model, x)
    assert "'a.b' has a dot in it" in str(sngd.explain(model))


def test_an_argument_called_self_beside_the_first():
    class Odd(nn.Module):
        def __init__(this):  # noqa: N805, RUF100
            super().__init__()
            this.weight = nn.Parameter(torch.randn(3, 3))

        def forward(this, self):  # noqa: N805, RUF100
            return self @ this.weight

    model, x = Odd(), torch.randn(2, 3)
    _same(sngd.reconstruct(model), model, x)


@pytest.mark.parametrize("name", ["__slots__", "__len__", "__bool__"])
def test_names_to_which_python_gives_a_meaning_are_left(name):
    model, x = Own("parameter", name), torch.randn(2, 3)
    _same(sngd.reconstruct(model), model, x)
    assert f"{name!r} is no name for a parameter" in str(sngd.explain(model))


@pytest.mark.parametrize("name", ["run_own", "program", "names", "observing"])
def test_names_that_a_reconstructed_module_needs_are_left(name):
    model, x = Own("parameter", name), torch.randn(2, 3)
    _same(sngd.reconstruct(model), model, x)
    assert "which a reconstructed one needs" in str(sngd.explain(model))


def test_errors_and_warnings_escape_what_a_terminal_would_obey():
    name = "\x1b[2Jgone\nname"
    message = f"{shown(name)} is"
    assert message in str(sngd.ModelError(f"{name} is"))
    assert message in str(sngd.SngdWarning(f"{name} is"))
    net = sngd.reconstruct(Own("ModuleDict", name))
    child = net.members[name]
    del child._modules["weight_fisher"]
    with pytest.raises(sngd.SngdError) as caught:
        net(torch.randn(2, 3))
    assert shown(name) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", ["weight", "_x", "a.b.c", "match"])
def test_plain_paths(path):
    assert is_plain(path)


@pytest.mark.parametrize("path", ["", "a.", "a.0", "class", "a.in.b", "a b", "ﬁn", "x\n", "重み"])
def test_other_paths(path):
    assert not is_plain(path)
