"""Metrics that the outputs weigh, written out on `w`: one for each output unit."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from laws.units import information
from theorem.descent import Layer


class UnitLayer(Layer):
    """A linear layer or convolution, every row of which is multiplied by an inverse of its own."""

    def __init__(self, module, observed_step, activation):
        super().__init__(module, observed_step)
        self.weights: list[Tensor] = []
        module.register_forward_hook(lambda _, inputs, y: self.observe_outputs(y, observed_step()))
        self.activation = activation
        outputs, size = module.weight.shape[0], self.inverse.shape[-1]
        self.inverse = torch.eye(size).expand(outputs, size, size)

    def observe_outputs(self, outputs: Tensor, step: int | None) -> None:
        """Keep what the outputs weigh the rows by, `[N, O]`."""
        if step is not None:
            last = outputs if isinstance(self.module, nn.Linear) else outputs.movedim(1, -1)
            outputs = last.detach().reshape(-1, last.shape[-1])
            self.weights.append(information(self.activation, outputs))

    def moment(self, rows: Tensor) -> Tensor:
        """Return the weighted mean outer product of every output, `[O, D, D]`."""
        nu = torch.cat(self.weights).mT.unflatten(0, (self.groups, -1))
        self.weights.clear()
        moments = torch.einsum("gon,gnd,gne->gode", nu, rows, rows) / rows.shape[1]
        return moments.flatten(0, 1)

    def precondition(self, gradient: Tensor) -> Tensor:
        """Multiply every row by its inverse."""
        flat = gradient.flatten(0, 1)[:, None] @ self.inverse
        return flat.view(gradient.shape)


def unit_layers(model: nn.Module) -> Callable[..., Layer]:
    """Return what preconditions a layer of the model: by unit where an activation follows it."""

    def layer(module: nn.Module, observed_step: Callable[[], int | None]) -> Layer:
        name = next(name for name, other in model.named_modules() if other is module)
        if name not in model.activations:
            return Layer(module, observed_step)
        return UnitLayer(module, observed_step, model.activations[name])

    return layer
