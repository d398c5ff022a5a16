"""The laws of `Config(fisher="softmax")`: one local Fisher over the weights of all outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Self

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from laws.case import Case
from laws.suite import close, observed, root_whitens_the_factor
from laws.table import OF_THE_ROOT


@dataclass(frozen=True, kw_only=True)
class SoftmaxCase(Case):
    """A layer whose outputs are logits: its matrix is one row, the weights of all outputs."""

    @classmethod
    def of(cls, case: Case) -> Self:
        """Take the outputs of a case for logits."""
        return cls(**vars(case) | {"fisher": "softmax", "name": f"softmax {case.name}"})

    def matrix(self, values: dict[str, Tensor]) -> Tensor:
        """Lay what belongs to the weight and its bias out as `[1, O D]`."""
        return super().matrix(values).reshape(1, -1)

    def moments(self, model: nn.Module, x: Tensor) -> tuple[Tensor, int]:
        """Return the mean of `(diag(p) - p p^T) (x) x~ x~^T`, `[1, O D, O D]`, and the rows."""
        rows = self.rows(model, x)
        rows = rows.reshape(-1, rows.shape[-1])
        if self.bias is not None:
            rows = F.pad(rows, (0, 1), value=1.0)
        p = model(x).detach().movedim(self.channel_axis, -1).softmax(-1).reshape(len(rows), -1)
        each = [torch.kron(q.diag() - q.outer(q), r.outer(r)) for q, r in zip(p, rows, strict=True)]
        return torch.stack(each).mean(0)[None], len(rows)


def factor_is_the_covariance_of_classes(case: Case, root: str) -> None:
    """The factor is that of the rows and probabilities; nothing is observed outside training."""
    net = observed(case, root)
    fisher = sngd.fisher_layers(net)[case.weight]
    assert fisher.kind == "softmax"
    expected, count = case.moments(case.build(), case.input())
    with torch.no_grad():
        net(case.input(3))
    net.eval()(case.input(4))
    sngd.refresh_(net)
    close(fisher.factor[None], expected)
    assert fisher.rows_seen == count


def every_softmax_law(cases: Sequence[SoftmaxCase]) -> pytest.MarkDecorator:
    """Run a test of arguments `law`, `case`, `root` for every law of logits on every case."""
    laws = [
        *product((*OF_THE_ROOT, factor_is_the_covariance_of_classes), ("cholesky",)),
        (root_whitens_the_factor, "symmetric"),
    ]
    listed = [
        pytest.param(law, case, root, id=f"{case.name}-{law.__name__}-{root}")
        for case, (law, root) in product(cases, laws)
    ]
    return pytest.mark.parametrize(("law", "case", "root"), listed)
