"""The maps of a root are products with its matrix, whichever shortcuts they take."""

import pytest
import torch

from fisher.roots.test_map_weight import FORMS, PLAIN, a_root
from sngd_compile.fisher.roots.pairs import join

pytestmark = pytest.mark.usefixtures("float64")

FULL = [name for name, form in FORMS.items() if form.kind in ("shared", "sketch")]
PAIRS = {"fold": "to_prime", "unfold": "from_prime"}
sides = pytest.mark.parametrize("has_bias", [True, False])
names = pytest.mark.parametrize("name", FULL)
known = pytest.mark.parametrize("is_known", [True, False])


def prepared(name, has_bias, is_known):
    """Return a root, of a sketch with what it may remember of its numbers or without."""
    form, root = a_root(FORMS[name], has_bias)
    if form.kind == "sketch":
        root.tail.abs_().add_(0.3)
        root.note_columns(root.basis.shape[-1])
        root.known = root.known if is_known else None
    return form, root


def a_pair(form, has_bias):
    """Return a weight and a bias as matrices."""
    weight = torch.randn(form.layout.matrix)
    return weight, torch.randn(weight.shape[:-1]) if has_bias else None


@names
@sides
@known
def test_a_fold_is_a_product_with_the_matrix(name, has_bias, is_known):
    form, root = prepared(name, has_bias, is_known)
    pair = a_pair(form, has_bias)
    torch.testing.assert_close(join(*root.fold(*pair)), join(*pair) @ root.matrix())


@pytest.mark.parametrize("there", PAIRS)
@names
@sides
@known
def test_gradients_take_the_transpose(name, has_bias, is_known, there):
    form, root = prepared(name, has_bias, is_known)
    one, other = a_pair(form, has_bias), a_pair(form, has_bias)
    left = join(*getattr(root, there)(*one)) * join(*other)
    right = join(*one) * join(*getattr(root, PAIRS[there])(*other))
    torch.testing.assert_close(left.sum(), right.sum())
    back = root.natural(*one)
    torch.testing.assert_close(join(*back), join(*root.fold(*root.to_prime(*one))))


@pytest.mark.parametrize("name", [n for n in FULL if FORMS[n].layout is PLAIN])
@pytest.mark.parametrize("count", [0, 1, 4])
@sides
@known
def test_rows_take_the_transpose_of_the_matrix(name, has_bias, is_known, count):
    form, root = prepared(name, has_bias, is_known)
    weight, bias = a_pair(form, has_bias)
    rows = torch.randn(count, weight.shape[-1])
    full = join(rows, torch.ones(count) if has_bias else None)
    expected = full @ root.matrix().mT @ join(weight, bias).mT
    torch.testing.assert_close(root.linear(rows, weight, bias), expected)
