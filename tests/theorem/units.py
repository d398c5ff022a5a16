"""Metrics that the outputs weigh, written out on `w`: for each output unit, or over all of them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from laws.units import information
from theorem.descent import Layer


class WeighedLayer(Layer):
    """A linear layer or convolution whose outputs are kept beside its rows."""

    def __init__(self, module, observed_step):
        super().__init__(module, observed_step)
        self.weights: list[Tensor] = []
        module.register_forward_hook(lambda _, inputs, y: self.observe_outputs(y, observed_step()))

    def observe_outputs(self, outputs: Tensor, step: int | None) -> None:
        """Keep what the outputs weigh the rows by, `[N, O]`."""
        if step is not None:
            last = outputs if isinstance(self.module, nn.Linear) else outputs.movedim(1, -1)
            self.weights.append(self.weigh(last.detach().reshape(-1, last.shape[-1])))

    def weigh(self, outputs: Tensor) -> Tensor:
        """Return what outputs `[N, O]` weigh the rows by."""
        raise NotImplementedError


class UnitLayer(WeighedLayer):
    """One of which every row is multiplied by an inverse of its own."""

    def __init__(self, module, observed_step, activation):
        super().__init__(module, observed_step)
        self.activation = activation
        outputs, size = module.weight.shape[0], self.inverse.shape[-1]
        self.inverse = torch.eye(size).expand(outputs, size, size)

    def weigh(self, outputs: Tensor) -> Tensor:
        """Return what every output says of its pre-activation."""
        return information(self.activation, outputs)

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


class SoftmaxLayer(WeighedLayer):
    """One whose weights, those of all outputs together, are multiplied by one inverse."""

    def __init__(self, module, observed_step):
        super().__init__(module, observed_step)
        self.inverse = torch.eye(module.weight.shape[0] * self.inverse.shape[-1])

    def weigh(self, outputs: Tensor) -> Tensor:
        """Return probabilities."""
        return outputs.softmax(-1)

    def moment(self, rows: Tensor) -> Tensor:
        """Return the mean of `(diag(p) - p p^T) (x) x~ x~^T`, `[O D, O D]`."""
        p, (x,) = torch.cat(self.weights), rows
        self.weights.clear()
        joined = torch.einsum("no,nd->nod", p, x).flatten(1)
        diagonal = torch.einsum("no,nd,ne->ode", p, x, x)
        return (torch.block_diag(*diagonal) - joined.mT @ joined) / len(x)

    def precondition(self, gradient: Tensor) -> Tensor:
        """Multiply all weights by the inverse."""
        return (gradient.flatten() @ self.inverse).view(gradient.shape)


def softmax_layers(model: nn.Module, everywhere: bool) -> Callable[..., Layer]:
    """Return what preconditions a layer: over all outputs where they are taken for logits."""

    def layer(module: nn.Module, observed_step: Callable[[], int | None]) -> Layer:
        name = next(name for name, other in model.named_modules() if other is module)
        grouped = getattr(module, "groups", 1) > 1
        takes = (everywhere and not grouped) or name == model.logits
        return (SoftmaxLayer if takes else Layer)(module, observed_step)

    return layer
