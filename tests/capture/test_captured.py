"""What a graph can hold is captured: the network computes what the model does, to the last call."""

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from capture import Layer, assert_same, layer

pytestmark = pytest.mark.usefixtures("float64")
X = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)


class Pair(NamedTuple):
    """A named tuple as an output."""

    first: Tensor
    second: Tensor


def two_arguments(self, x, other):
    return self.linear(x) * other


def default_number(self, x, scale=2.0):
    return self.linear(x) * scale


def default_list(self, x, options=[]):  # noqa: B006
    return self.linear(x)


def keyword_only(self, x, *, scale):
    return self.linear(x) * scale


def positional_only(self, x, /, scale):
    return self.linear(x) * scale


def more_arguments(self, x, *more):
    return self.linear(x) * more[0] + more[1]


def all_arguments(self, *args, **kwargs):
    return self.linear(args[0]) * kwargs["scale"]


def keywords(self, x, **kwargs):
    return self.linear(x) * kwargs.get("scale", 3.0)


def nested_outputs(self, x):
    y = self.linear(x)
    return {"out": y, "all": (2 * y, [y.exp()])}


def named_tuple(self, x):
    y = self.linear(x)
    return Pair(y, y * 2)


def unpacked_shape(self, x):
    rows, width = x.shape
    return self.linear(x).view(width, rows)


def in_place(self, x):
    y = self.linear(x)
    y += 1
    return y.mul_(2)


def static_loop(self, x):
    for power in range(3):
        x = torch.tanh(self.linear(x)) * math.sqrt(power + 1)
    return x


def local_list(self, x):
    outputs = [self.linear(x)]
    outputs.append(outputs[0] * 2)
    return torch.cat(outputs)


def list_comprehension(self, x):
    return torch.stack([self.linear(x) * k for k in (1, 2)])


def parameter_test(self, x):
    bias = self.bias
    return F.linear(x, self.weight) if bias is None else F.linear(x, self.weight, bias)


def shape_check(self, x):
    torch._assert(x.shape[-1] == 3, "three features, please")
    return self.linear(x)


def inner_gradient(self, x):
    y = self.linear(x)
    return torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]


FORWARDS = [
    (two_arguments, (X, X), {}),
    (default_number, (X,), {}),
    (default_number, (X, 3.0), {}),
    (default_list, (X,), {}),
    (keyword_only, (X,), {"scale": 2.0}),
    (positional_only, (X,), {"scale": 2.0}),
    (more_arguments, (X, 2.0, X), {}),
    (all_arguments, (X,), {"scale": 2.0}),
    (keywords, (X,), {}),
    (keywords, (X,), {"scale": 2.0}),
    (nested_outputs, (X,), {}),
    (named_tuple, (X,), {}),
    (unpacked_shape, (X,), {}),
    (in_place, (X,), {}),
    (static_loop, (X,), {}),
    (local_list, (X,), {}),
    (list_comprehension, (X,), {}),
    (parameter_test, (X,), {}),
    (shape_check, (X,), {}),
    (inner_gradient, (X.clone().requires_grad_(),), {}),
]


@pytest.mark.parametrize(("forward", "args", "kwargs"), FORWARDS)
def test_captured_forwards_compute_the_same(forward, args, kwargs):
    model = layer(forward)
    assert [site.name for site in sngd.explain(model).sites] == ["weight"]
    net = assert_same(model, *args, **kwargs)
    assert type(net(*args, **kwargs)) is type(model(*args, **kwargs))


def test_missing_and_unknown_arguments_raise_as_before():
    model, net = layer(keyword_only), sngd.reconstruct(layer(keyword_only))
    for each in (model, net):
        with pytest.raises(TypeError, match="scale"):
            each(X)
        with pytest.raises(TypeError, match="shape"):
            each(X, scale=1.0, shape=2)


def test_a_captured_check_still_raises():
    net = sngd.reconstruct(layer(shape_check))
    with pytest.raises(AssertionError, match="three features"):
        net(torch.ones(2, 4))


class Scaled(Layer):
    """Calls the forward of its base class."""

    def forward(self, x):
        return 2 * super().forward(x)


class Twice(Scaled):
    """Calls the forward of a base class that calls its own."""

    def forward(self, x):
        return super().forward(super().forward(x))


class Inherited(Twice):
    """Has no forward of its own."""


class Secret(Layer):
    """Uses a name that Python mangles, a property, a class method and a static method."""

    factor = 3

    def __init__(self):
        super().__init__()
        self.__hidden = 2

    @property
    def doubled(self):
        return 2 * self.weight

    @classmethod
    def scale(cls):
        return cls.factor

    @staticmethod
    def shift(x):
        return x + 1

    def forward(self, x):
        return self.shift(F.linear(x, self.doubled) * self.__hidden) + self.linear(x) * self.scale()


@pytest.mark.parametrize("model_class", [Scaled, Twice, Inherited])
def test_inherited_forwards_are_captured(model_class):
    model = model_class()
    assert len(sngd.explain(model).sites) == 1
    assert isinstance(assert_same(model, X), model_class)


def test_a_weight_changed_before_its_call_is_left():
    assert sngd.explain(Secret()).sites == []
    assert_same(Secret(), X)


def test_a_lambda_as_forward_is_captured():
    model = type("Lambda", (Layer,), {"forward": lambda self, x: self.linear(x)})()
    assert len(sngd.explain(model).sites) == 1
    assert_same(model, X)


class Head(nn.Module):
    """Owns a weight, calls children, reads a buffer, a plain tensor and a child's weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.body = nn.Linear(3, 3)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("shift", torch.ones(3))
        self.mask = torch.tensor([1.0, 0.0, 2.0, 1.0])
        self.absent = None

    def forward(self, x):
        x = self.drop(self.body(x - self.shift))
        if self.absent is not None:
            x = self.absent(x)
        return F.linear(x, self.weight) * self.mask + self.body.weight.sum()


def test_children_buffers_and_plain_tensors_are_read_at_run_time():
    model = Head()
    net = assert_same(model, X).eval()
    expected = F.linear(net.body(X - 5), net.weight) * 3 + net.body.weight.sum()
    net.shift.fill_(5.0)
    net.mask = torch.full((4,), 3.0)
    torch.testing.assert_close(net(X), expected)
