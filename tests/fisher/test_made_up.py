"""A kind of local Fisher, and a kind of root, are one file each: nothing else is touched."""

import copy
import io

import pytest
import torch
from torch import nn

import sngd_compile as sngd
from api import AS_IN_THE_PAPER, EVERY_STEP, apart, batch, mlp, train
from fisher.made_up_kind import Isotropic
from fisher.roots.made_up_root import RotatedRoot
from laws import conv_case, linear_case
from laws.table import LAWS, by_root
from sngd_compile.registry import KINDS, ROOTS

pytestmark = pytest.mark.usefixtures("float64", "registered")


@pytest.fixture
def registered():
    """Let both be there for one test."""
    KINDS.register("isotropic", Isotropic())
    ROOTS.register("rotated", RotatedRoot)
    yield
    KINDS.remove("isotropic")
    ROOTS.remove("rotated")


ISOTROPIC = EVERY_STEP.replace(**AS_IN_THE_PAPER, fisher="isotropic", damping_abs=0.1)
CASES = [
    linear_case(3, 4, (7,)),
    conv_case(nn.Conv2d, (4, 6), 3, (2, 4, 5, 5), groups=2),
]

# Importing their files has registered them; other tests list what the project has.
KINDS.remove("isotropic")
ROOTS.remove("rotated")


def second_moment(x, size):
    """The multiple of the identity, written out: the bias's 1 counts."""
    return (x.square().sum() / len(x) + 1) / size


def test_both_are_found_by_name_and_listed_in_the_error():
    assert (KINDS["isotropic"].name, ROOTS["rotated"]) == (Isotropic.name, RotatedRoot)
    with pytest.raises(sngd.ConfigError, match=r"expected one of .*isotropic"):
        sngd.Config(fisher="isotropi")
    with pytest.raises(sngd.ConfigError, match=r"expected one of .*rotated"):
        sngd.Config(root="rotate")


@pytest.mark.parametrize("root", ["cholesky", "symmetric", "rotated"])
def test_a_step_of_the_made_up_kind_is_natural(root):
    model, x = nn.Linear(5, 3), batch()
    net = sngd.reconstruct(model, ISOTROPIC.replace(root=root))
    net(x)
    sngd.refresh_(net)
    layer = net.weight_fisher
    assert layer.damping == pytest.approx(0.1 + 3e-3 * 6 * float(second_moment(x, 6)))
    metric = second_moment(x, 6) + layer.damping
    for network in (model, net):
        network(x).square().mean().backward()
    torch.optim.SGD(net.parameters(), lr=0.5).step()
    plain = sngd.fold(net)
    torch.testing.assert_close(plain.weight, model.weight - 0.5 * model.weight.grad / metric)
    torch.testing.assert_close(plain.bias, model.bias - 0.5 * model.bias.grad / metric)


def test_it_is_planned_copied_saved_and_observed_by_the_other_api():
    net = sngd.reconstruct(mlp(), ISOTROPIC.replace(root="rotated"))
    train(net)
    assert "isotropic 6" in str(sngd.explain(net))
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    other = sngd.reconstruct(mlp(), ISOTROPIC.replace(root="rotated"))
    other.load_state_dict(net.state_dict())
    for twin in (copy.deepcopy(net), torch.load(file, weights_only=False), other, sngd.fold(net)):
        assert apart(net, twin, batch(9)) < 1e-12
    torch._dynamo.reset()
    model = mlp()
    options = {"fisher": "isotropic", "root": "rotated", "observe_every": 1, "max_rows": None}
    compiled = torch.compile(model, backend="sngd", options={**options, "inner_backend": "eager"})
    compiled(batch()).sum().backward()
    sngd.refresh_(compiled)
    (layer, _) = sngd.fisher_layers(compiled).values()
    torch.testing.assert_close(layer.factor, second_moment(batch(), 6) * torch.eye(6))
    torch._dynamo.reset()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_made_up_root_obeys_every_law(case):
    for laws in by_root(case, [(law, "rotated") for law, _ in dict.fromkeys(LAWS)]):
        laws.check()


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="there is a kind of local Fisher 'isotropic' already"):
        KINDS.register("isotropic", Isotropic())
