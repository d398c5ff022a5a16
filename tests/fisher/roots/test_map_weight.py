"""The opaque ops of a graph are the maps of the roots that they stand for, gradients included."""

from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from sngd_compile.fisher.kinds.base import kind_of
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.fisher.weight_map import ADJOINT, mapped
from sngd_compile.layout import Layout

pytestmark = pytest.mark.usefixtures("float64")

WIDE = 131
PLAIN, TRANSPOSED = Layout.plain((5, 7)), Layout.transposed((7, 5))
GROUPED = Layout.plain((6, 3, 2), groups=2)


def a_form(kind, root, blocks, layout):
    """Describe a local Fisher with a bias; `blocks` include it."""
    return FisherSpec(layout, True, kind, root, torch.float64, rank=3, blocks=blocks)


FORMS = {
    "cholesky": a_form("shared", "cholesky", (), PLAIN),
    "cholesky, transposed": a_form("shared", "cholesky", (), TRANSPOSED),
    "cholesky, groups": a_form("shared", "cholesky", (), GROUPED),
    "cholesky, wide": a_form("shared", "cholesky", (), Layout.plain((17, WIDE))),
    "symmetric": a_form("shared", "symmetric", (), PLAIN),
    "sketch": a_form("sketch", "cholesky", (), PLAIN),
    "sketch, transposed": a_form("sketch", "cholesky", (), TRANSPOSED),
    "sketch, groups": a_form("sketch", "cholesky", (), GROUPED),
    "diagonal": a_form("diagonal", "cholesky", (), GROUPED),
    "block": a_form("block", "cholesky", (3, 3, 2), PLAIN),
    "unit": a_form("unit", "cholesky", (), PLAIN),
    "kronecker": a_form("kronecker", "cholesky", (), PLAIN),
}
SMALL = [name for name, form in FORMS.items() if form.layout.width < WIDE]


def a_root(form, has_bias):
    """Return a root of this form with numbers of no meaning, in the shape that it has."""
    blocks = form.blocks[:-1] + tuple(b - (not has_bias) for b in form.blocks[-1:])
    form = replace(form, has_bias=has_bias, blocks=blocks)
    root = kind_of(form).first_root(form, form.dtype, torch.device("cpu"))
    for name, buffer in root.named_buffers():
        noise = torch.randn_like(buffer)
        noise = noise + noise.mT if name.endswith("symmetric") else noise
        buffer.add_(noise.tril() if name.endswith("inverse") else noise)
    return form, root


def a_pair(form, has_bias):
    weight = torch.randn(form.layout.view, requires_grad=True)
    bias = torch.randn(form.layout.all_outputs, requires_grad=True) if has_bias else None
    return weight, bias


def opaque(name, form, root):
    """Return the op as a function of the weight and the bias."""
    buffers = list(root.buffers())
    return lambda *pair: torch.ops.sngd.map_weight(*pair, buffers, name, form.encoded)


@pytest.mark.parametrize("name", ADJOINT)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_op_is_the_map(form, name, has_bias):
    form, root = a_root(FORMS[form], has_bias)
    pair = a_pair(form, has_bias)
    found = opaque(name, form, root)(*pair)
    expected = [part for part in mapped(name, root, form, *pair) if part is not None]
    torch.testing.assert_close(list(found), expected)
    assert all(part.is_contiguous() for part in found)


@pytest.mark.parametrize("name", ADJOINT)
@pytest.mark.parametrize("form", FORMS)
def test_gradients_take_the_adjoint(form, name):
    form, root = a_root(FORMS[form], True)
    pair, other = a_pair(form, True), a_pair(form, True)
    there = opaque(name, form, root)(*pair)
    back = opaque(ADJOINT[name], form, root)(*other)
    product = sum(torch.sum(a * b) for a, b in zip(there, other, strict=True))
    torch.testing.assert_close(
        product, sum(torch.sum(a * b) for a, b in zip(pair, back, strict=True))
    )
    torch.testing.assert_close(torch.autograd.grad(product, pair), tuple(back))


@pytest.mark.parametrize("form", SMALL)
def test_gradients_of_gradients(form):
    form, root = a_root(FORMS[form], True)
    function = opaque("fold", form, root)
    pair = a_pair(form, True)
    assert gradcheck(function, pair)
    assert gradgradcheck(lambda *pair: [part.sin() for part in function(*pair)], pair)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("form", ["cholesky", "cholesky, groups", "block"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_what_torch_asks_of_an_op(form, has_bias):
    form, root = a_root(FORMS[form], has_bias)
    arguments = (*a_pair(form, has_bias), list(root.buffers()), "fold", form.encoded)
    opcheck(torch.ops.sngd.map_weight.default, arguments)


def test_strides_do_not_matter():
    layout = Layout.plain((5, 3, 2, 3))
    form, root = a_root(a_form("shared", "cholesky", (), layout), True)
    weight, bias = torch.randn(5, 3, 2, 3), torch.randn(5)
    function = opaque("to_prime", form, root)
    turned = weight.contiguous(memory_format=torch.channels_last)
    assert turned.stride() != weight.stride()
    torch.testing.assert_close(function(turned, bias), function(weight, bias))
