"""The laws of `Config(fisher="softmax")`: one local Fisher over the weights of all outputs."""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laws.case import Case


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
