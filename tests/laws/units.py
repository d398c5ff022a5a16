"""The laws of `Config(fisher="unit")`: one local Fisher for each output."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from laws.case import Case

SLOPES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "relu": (F.softplus, 2),
    "tanh": (torch.tanh, 1),
    "sigmoid": (torch.sigmoid, 1),
    "elu": (F.elu, 2),
    "gelu": (F.gelu, 2),
    "silu": (F.silu, 2),
}
"""nu as a power of a slope: of a probability's the first, of a Gaussian's mean the second."""


def information(activation: str, a: Tensor) -> Tensor:
    """Return nu by differentiation."""
    function, power = SLOPES[activation]
    return vmap(grad(function))(a.flatten()).view(a.shape) ** power


@dataclass(frozen=True, kw_only=True)
class UnitCase(Case):
    """A layer whose outputs are pre-activations.

    Args:
        activation: `Config.activation`.
    """

    activation: str

    @classmethod
    def of(cls, case: Case, activation: str) -> Self:
        """Let an activation follow the layer of a case."""
        fields = vars(case) | {"fisher": "unit", "name": f"{activation} {case.name}"}
        return cls(**fields, activation=activation)

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of `Config` that make it this local Fisher."""
        return super().fields | {"activation": self.activation}

    def moments(self, model: nn.Module, x: Tensor) -> tuple[Tensor, int]:
        """Return the weighted mean outer product of each output, `[O, D, D]`, and the rows."""
        rows = self.rows(model, x)
        rows = rows[None] if rows.dim() == 2 else rows
        if self.bias is not None:
            rows = F.pad(rows, (0, 1), value=1.0)
        outputs = model(x).detach().movedim(self.channel_axis, -1)
        nu = information(self.activation, outputs.reshape(-1, outputs.shape[-1]))
        units = nu.shape[1] // len(rows)
        moments = [
            (rows[j // units] * w[:, None]).mT @ rows[j // units] for j, w in enumerate(nu.mT)
        ]
        return torch.stack(moments) / rows.shape[1], rows.shape[1]
