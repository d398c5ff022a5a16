"""One model of the zoo."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ZooCase:
    """A model, made with a fixed seed, and one batch for it.

    Args:
        name: Shown by pytest and in the table.
        model: Makes the model.
        batch: Makes the keyword arguments of its forward.
        loss: Output to scalar loss; by default the output's own `loss`.
        dtype: float64, or what the model's kernels take.
    """

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Any]]
    loss: Callable[[Any], Tensor] = lambda output: output.loss
    dtype: torch.dtype = torch.float64

    def build(self) -> nn.Module:
        """Make the model, in train mode."""
        torch.manual_seed(0)
        return self.model().to(self.dtype).train()

    def inputs(self) -> dict[str, Any]:
        """Make the batch, in the dtype of the model."""
        torch.manual_seed(1)
        return {name: self._cast(value) for name, value in self.batch().items()}

    def loss_of(self, model: nn.Module) -> Tensor:
        """Run the model; random layers draw the same numbers each time."""
        torch.manual_seed(2)
        return self.loss(model(**self.inputs()))

    def _cast(self, value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(self.dtype) if floating else value


def tokens(*shape: int, vocabulary: int = 101) -> Tensor:
    """Draw tokens that are no special ones."""
    return torch.randint(5, vocabulary, shape)
