"""`F.grouped_mm` against the rows of every group written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import Config
from sngd_compile.rules import RULES

ENDS = torch.tensor([3, 3, 8], dtype=torch.int32)  # the second group is empty


class Experts(nn.Module):
    """Three experts, laid out as linear layers are."""

    shape = (3, 4, 8)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(self.shape) / 3)

    def forward(self, x: Tensor) -> Tensor:
        """Give every row to the expert of its group."""
        return F.grouped_mm(x, self.weight.transpose(-2, -1), offs=ENDS)


class Turned(Experts):
    """Three experts, laid out as the product wants them."""

    shape = (3, 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Give every row to the expert of its group."""
        return F.grouped_mm(x, self.weight, offs=ENDS)


class ForeignOperator(Experts):
    """Three experts by the operator that transformers compiles, which takes any dtype."""

    def __init__(self, has_overload: bool):
        super().__init__()
        packet = torch.ops.transformers.grouped_mm_fallback
        self.product = packet.default if has_overload else packet

    def forward(self, x: Tensor) -> Tensor:
        """Give every row to the expert of its group."""
        return self.product(x, self.weight.transpose(-2, -1), ENDS)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("has_overload", [False, True])
@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
def test_an_operator_of_another_package_is_known_by_its_name(backend, has_overload):
    pytest.importorskip("transformers.integrations.moe")
    model, x = ForeignOperator(has_overload), torch.randn(8, 8)
    net = sngd.reconstruct(model, Config(max_rows=None))
    run = net if backend is None else torch.compile(net, backend=backend, fullgraph=True)
    torch.testing.assert_close(run(x), model(x))
    (layer,) = sngd.fisher_layers(sngd.refresh_(net)).values()
    assert layer.rows_seen == 8
    torch.testing.assert_close(layer.factor[0], x[:3].mT @ x[:3] / 8)
    assert not layer.factor[1].any()


@pytest.mark.parametrize("model_class", [Experts, Turned])
def test_every_expert_has_the_second_moment_of_its_rows(model_class):
    model, x = model_class(), torch.randn(8, 8)
    net = sngd.reconstruct(model, Config(max_rows=None))
    torch.testing.assert_close(net(x), model(x))
    (layer,) = sngd.fisher_layers(sngd.refresh_(net)).values()
    assert layer.rows_seen == 8
    starts = [0, *ENDS[:-1].tolist()]
    for factor, start, end in zip(layer.factor, starts, ENDS.tolist(), strict=True):
        torch.testing.assert_close(factor, x[start:end].mT @ x[start:end] / 8)
    torch.testing.assert_close(net(x), model(x), rtol=1e-3, atol=1e-5)


def test_the_rows_written_out_have_the_same_moments():
    rule, x = RULES["grouped product"], torch.randn(8, 5)
    samples = rule.samples([x, ENDS], (3,))
    rows = rule.rows(samples, (3,))
    moment = rule.second_moment(samples, (3,), False, torch.zeros(3, 5, 5))
    torch.testing.assert_close(moment, rows.mT @ rows)
    diagonal = rule.diagonal(samples, (3,), False, torch.zeros(3, 5))
    torch.testing.assert_close(diagonal, rows.square().sum(1))
