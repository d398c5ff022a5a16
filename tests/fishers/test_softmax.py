"""`Config(fisher="softmax")` gives all weights of a layer of logits one local Fisher."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian

import sngd_compile as sngd
from api.observing import copies_and_files_observe_alike, one_graph_observes_alike
from laws import SoftmaxCase, conv_case, every_output_law, linear_case
from sngd_compile import Config, SngdWarning

pytestmark = pytest.mark.usefixtures("float64")
SOFTMAX = Config(fisher="softmax", max_rows=None)
CASES = [
    SoftmaxCase.of(linear_case(5, 3, (7,))),
    SoftmaxCase.of(linear_case(2, 7, (3, 2))),
    SoftmaxCase.of(linear_case(5, 2, (6,), bias=False)),
    SoftmaxCase.of(linear_case(1, 3, (5,))),
    SoftmaxCase.of(linear_case(3, 4, ())),
    SoftmaxCase.of(conv_case(nn.Conv2d, (2, 3), 2, (2, 2, 5, 4), stride=2, padding=1)),
    SoftmaxCase.of(conv_case(nn.Conv1d, (2, 3), 1, (2, 4), bias=False).called("unbatched")),
]


@every_output_law(CASES)
def test_laws(law, case, root):
    law(case, root)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_factor_is_the_hessian_of_cross_entropy(bias, scale):
    layer, x, labels = nn.Linear(4, 3, bias=bias), torch.randn(9, 4) * scale, torch.arange(9) % 3
    net = sngd.reconstruct(layer, SOFTMAX)
    net(x)
    fisher = sngd.fisher_layers(sngd.refresh_(net))["weight"]

    def of_vector(vector: Tensor) -> Tensor:
        matrix = vector.view(3, -1)
        named = {"weight": matrix[:, :4]} | ({"bias": matrix[:, 4]} if bias else {})
        return F.cross_entropy(functional_call(layer, named, (x,)), labels)

    joined = torch.cat([layer.weight, layer.bias[:, None]], 1) if bias else layer.weight
    expected = hessian(of_vector)(joined.detach().flatten())
    torch.testing.assert_close(fisher.factor, expected, rtol=1e-10, atol=1e-10 * scale**2)


def test_steps_with_little_damping_are_newtons():
    layer, x, labels = nn.Linear(3, 4), torch.randn(20, 3), torch.arange(20) % 4
    damping = {"damping_rel_trace": 0.0, "damping_abs": 1e-7}
    config = SOFTMAX.replace(ema_decay=0.0, early_refreshes=(), observe_every=1, **damping)
    net = sngd.reconstruct(layer, config)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    slopes = []
    for _ in range(6):
        optimizer.zero_grad()
        net.train()(x)
        sngd.refresh_(net)
        F.cross_entropy(net.eval()(x), labels).backward()
        plain = sngd.fold(net)
        (slope,) = torch.autograd.grad(F.cross_entropy(plain(x), labels), [plain.weight])
        slopes.append(float(slope.norm()))
        optimizer.step()
    assert slopes[0] > 1e-2
    assert slopes[-1] < 1e-9


def test_nothing_cancels_where_one_class_is_nearly_sure():
    layer = nn.Linear(2, 2, bias=False).float()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[30.0, 0.0], [0.0, 0.0]]))
    net = sngd.reconstruct(layer, SOFTMAX)
    net(torch.tensor([[1.0, 2.0]], dtype=torch.float32))
    factor = sngd.fisher_layers(sngd.refresh_(net))["weight"].factor
    row = torch.tensor([1.0, 2.0])
    p = torch.tensor([30.0, 0.0]).softmax(0)
    one = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    expected = p.prod() * torch.kron(one, row.outer(row))
    torch.testing.assert_close(factor.double(), expected, rtol=1e-5, atol=0.0)
    assert factor.amax() > 1e-13


def test_a_constant_for_all_logits_is_no_direction():
    net = sngd.reconstruct(nn.Linear(3, 4), SOFTMAX)
    net(torch.randn(8, 3))
    factor = sngd.fisher_layers(sngd.refresh_(net))["weight"].factor
    shift = torch.eye(4).repeat(4, 1)  # the same change of every output's weights
    assert (factor @ shift).norm() < 1e-14 * factor.norm()
    values = torch.linalg.eigvalsh(factor)
    assert values[0] > -1e-14
    assert int((values > 1e-10).sum()) == 3 * 4


def test_dropped_rows_keep_their_own_outputs():
    x = torch.randn(7, 3)
    model = nn.Linear(3, 2)
    net = sngd.reconstruct(model, SOFTMAX.replace(max_rows=3))
    net(x)
    factor = sngd.fisher_layers(sngd.refresh_(net))["weight"].factor
    case = SoftmaxCase.of(linear_case(3, 2, (3,)))
    candidates = [case.moments(model, x[[*some]])[0][0] for some in combinations(range(7), 3)]
    assert sum(torch.allclose(factor, moment, rtol=1e-10) for moment in candidates) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_numbers_that_are_not_finite_never_reach_a_weight(value):
    net = sngd.reconstruct(nn.Linear(3, 2), SOFTMAX)
    good, bad = torch.randn(4, 3), torch.randn(4, 3)
    bad[1, 2] = value
    net(good)
    net(bad)
    with pytest.warns(SngdWarning, match="not finite, or too large"):
        sngd.refresh_(net)
    fisher = sngd.fisher_layers(net)["weight"]
    assert fisher.rows_seen == 4
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    expected, _ = SoftmaxCase.of(linear_case(3, 2, (4,))).moments(sngd.fold(net), good)
    torch.testing.assert_close(fisher.factor, expected[0], rtol=1e-10, atol=1e-12)


def test_logits_that_leave_no_doubt_keep_the_root():
    net = sngd.reconstruct(nn.Linear(2, 2), SOFTMAX)
    with torch.no_grad():
        net.weight_prime.copy_(torch.tensor([[1e4, 0.0], [0.0, 0.0]]))
    net(torch.ones(5, 2))
    fisher = sngd.fisher_layers(sngd.refresh_(net))["weight"]
    assert fisher.rows_seen == 5
    assert torch.equal(fisher.root, torch.eye(6))


def step(net: nn.Module, seed: int) -> None:
    """Take one step and a refresh."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    F.cross_entropy(net(torch.randn(6, 5)), torch.arange(6) % 3).backward()
    optimizer.step()
    sngd.refresh_(net)


def mlp() -> nn.Sequential:
    """One hidden layer of odd size."""
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def test_copies_and_files_observe_as_before():
    config = SOFTMAX.replace(observe_every=1)
    copies_and_files_observe_alike(mlp, config, "2.weight", step)


def test_a_module_that_is_captured_again_still_observes():
    net = sngd.reconstruct(mlp(), SOFTMAX)
    net[2].note = "an attribute has the forward captured again"
    net(torch.randn(6, 5))
    assert sngd.fisher_layers(net)["2.weight"].rows_seen == 6
    assert sngd.fisher_layers(sngd.refresh_(net))["2.weight"].factor.norm() > 0


def test_a_compiled_network_observes_in_one_graph():
    one_graph_observes_alike(mlp, SOFTMAX)
