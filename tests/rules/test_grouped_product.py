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
    """Three experts, laid out as the product wants them or as linear layers."""

    def __init__(self, is_transposed: bool):
        super().__init__()
        self.is_transposed = is_transposed
        shape = (3, 8, 4) if is_transposed else (3, 4, 8)
        self.weight = nn.Parameter(torch.randn(shape) / 3)

    def forward(self, x: Tensor) -> Tensor:
        """Give every row to the expert of its group."""
        weight = self.weight if self.is_transposed else self.weight.transpose(-2, -1)
        return F.grouped_mm(x, weight, offs=ENDS)


@pytest.mark.parametrize("is_transposed", [True, False])
def test_every_expert_has_the_second_moment_of_its_rows(is_transposed):
    model, x = Experts(is_transposed), torch.randn(8, 8)
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
