"""A forward whose path a trace cannot know is not captured: the parameters are skipped."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from capture import assert_same, layer, reason

pytestmark = pytest.mark.usefixtures("float64")


def doubled_unless_none(x, mask):
    return x if mask is None else 2 * x


def is_tensor(x):
    return isinstance(x, Tensor)


def has_type(x):
    return type(x) is Tensor


def none_default(self, x, mask=None):
    return self.linear(x) if mask is None else 2 * self.linear(x)


def none_required(self, x, mask):
    return self.linear(x) if mask is None else 2 * self.linear(x)


def none_as_a_value(self, x, mask):
    absent = mask is None
    return self.linear(x) if absent else 2 * self.linear(x)


def none_in_a_helper(self, x, mask):
    return doubled_unless_none(self.linear(x), mask)


def none_in_a_closure(self, x, mask):
    def scale():
        return 1 if mask is None else 2

    return self.linear(x) * scale()


def none_after_renaming(self, x, mask):
    chosen = mask
    if chosen is not None:
        return 2 * self.linear(x)
    return self.linear(x)


def none_from_keywords(self, x, **kwargs):
    mask = kwargs.get("mask")
    return self.linear(x) if mask is None else 2 * self.linear(x)


def none_of_an_attribute(self, x):
    return self.linear(x) if x.grad_fn is None else 2 * self.linear(x)


def none_of_a_call(self, x):
    return self.linear(x) if getattr(x, "mask", None) is None else 2 * self.linear(x)


def same_object(self, x, other):
    return self.linear(x) * (3 if x is other else 1)


X = torch.ones(2, 3, dtype=torch.float64)
NONE_TESTS = [
    (none_default, (X,)),
    (none_default, (X, X)),
    (none_required, (X, None)),
    (none_as_a_value, (X, None)),
    (none_in_a_helper, (X, None)),
    (none_in_a_closure, (X, None)),
    (none_after_renaming, (X, None)),
    (none_from_keywords, (X,)),
    (none_of_an_attribute, (X,)),
    (none_of_a_call, (X,)),
    (same_object, (X, X)),
]


@pytest.mark.parametrize(("forward", "args"), NONE_TESTS)
def test_identity_tests_are_not_captured(forward, args):
    model = layer(forward)
    assert "None" in reason(model)
    assert_same(model, *args)


def isinstance_here(self, x):
    return self.linear(x) if isinstance(x, Tensor) else 2 * self.linear(x)


def isinstance_in_a_helper(self, x):
    return self.linear(x) if is_tensor(x) else 2 * self.linear(x)


def isinstance_of_an_attribute(self, x):
    return self.linear(x) if isinstance(x.T, Tensor) else 2 * self.linear(x)


def isinstance_in_torch(self, x):
    return self.linear(x) if torch.is_tensor(x) else 2 * self.linear(x)


def type_in_a_helper(self, x):
    return self.linear(x) if has_type(x) else 2 * self.linear(x)


def pattern(self, x):
    match x:
        case [first, *_]:
            return self.linear(first)
        case _:
            return self.linear(x)


def looked_up(self, x, mode="relu"):
    return {"relu": F.relu}.get(mode, torch.tanh)(self.linear(x))


def member_of_a_set(self, x, mode="relu"):
    return self.linear(x) if mode in {"relu", "tanh"} else 3 * self.linear(x)


def as_text(self, x):
    return self.linear(x) * len(f"{x.shape}")


def swallowed_error(self, x):
    try:
        return self.linear(x) if x.sum() > 0 else x
    except ValueError:
        return 7 * self.linear(x)


def grad_mode(self, x):
    return (lambda: self.linear(x) if torch.is_grad_enabled() else 2 * self.linear(x))()


def data_dependent(self, x):
    return self.linear(x) if x.sum() > 0 else x


def shape_dependent(self, x):
    return self.linear(x) if x.dim() == 2 else 2 * self.linear(x)


def asserted(self, x):
    assert x.shape[-1] == 3
    return self.linear(x)


def checked(self, x):
    if x.shape[-1] != 3:
        raise ValueError("three features, please")
    return self.linear(x)


def iterated(self, x):
    return torch.stack([self.linear(row) for row in x])


def as_number(self, x):
    return self.linear(x) * float(x.sum())


def mode_dependent(self, x):
    return self.linear(x) * (2 if self.training else 1)


def dropout_by_hand(self, x):
    return F.dropout(self.linear(x), 0.5, training=self.training)


BRANCHES = [
    (isinstance_here, "type of an activation"),
    (isinstance_in_a_helper, "type of an activation"),
    (isinstance_of_an_attribute, "type of an activation"),
    (isinstance_in_torch, "type of an activation"),
    (type_in_a_helper, "decides by type()"),
    (pattern, "`match`"),
    (looked_up, "dictionary or a set"),
    (member_of_a_set, "dictionary or a set"),
    (as_text, "as text"),
    (swallowed_error, "`try`"),
    (grad_mode, "is_grad_enabled"),
    (data_dependent, "branches on an activation"),
    (shape_dependent, "branches on an activation"),
    (asserted, "branches on an activation"),
    (checked, "branches on an activation"),
    (iterated, "iterates over one"),
    (as_number, "float()"),
    (mode_dependent, "differs between train and eval"),
    (dropout_by_hand, "differs between train and eval"),
]


@pytest.mark.parametrize(("forward", "why"), BRANCHES)
def test_branches_are_not_captured(forward, why):
    model = layer(forward)
    assert why in reason(model)
    assert_same(model, X)


def test_errors_of_the_forward_stay():
    net = assert_same(layer(checked), X)
    with pytest.raises(ValueError, match="three features"):
        net(torch.ones(2, 4))


def python_draw(self, x):
    return self.linear(x) if random.random() < 0.5 else x


def torch_draw(self, x):
    return self.linear(x) if torch.rand(()) < 0.5 else x


def numpy_draw(self, x):
    return self.linear(x) if np.random.rand() < 0.5 else x


def noise(self, x):
    return self.linear(x) + torch.rand(3)


@pytest.mark.parametrize("forward", [python_draw, torch_draw, numpy_draw, noise])
def test_random_paths_are_not_captured_and_the_generators_stay(forward):
    model = layer(forward)
    before = random.getstate(), torch.get_rng_state().tolist(), str(np.random.get_state())
    for _ in range(6):  # a coin may fall the same way in every trace of one attempt
        assert "random" in reason(model)
    assert before == (random.getstate(), torch.get_rng_state().tolist(), str(np.random.get_state()))
