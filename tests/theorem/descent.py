"""Preconditioned heavy-ball descent on `w`, written out: it knows no `w'`, no root, no graph."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laws import conv_rows, linear_rows
from sngd_compile import Config
from sngd_kernels import sketch_basis
from sngd_kernels.reference import sketch_metric_reference
from theorem.networks import Gain


def gain_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Take every activation as one row."""
    return x.reshape(-1, 1)


class Layer:
    """One linear layer, convolution or gain with its second moment, all in the coordinates of `w`.

    Args:
        module: The layer.
        observed_step: The present step, or None where its forward passes are not observed.
    """

    def __init__(self, module: nn.Module, observed_step: Callable[[], int | None]):
        self.module = module
        self.groups = getattr(module, "groups", 1)
        rows_of = {nn.Linear: linear_rows, nn.Conv2d: conv_rows, Gain: gain_rows}
        self.rows_of = rows_of[type(module)]
        self.rows: list[Tensor] = []
        self.observed_steps: set[int] = set()
        self.average = self.weight = 0.0
        self.inverse = torch.eye(self.matrix(lambda p: p.detach()).shape[-1])
        module.register_forward_pre_hook(lambda _, inputs: self.observe(inputs[0], observed_step()))

    def matrix(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Lay a value of weight and bias out as `[groups, O / groups, D]`."""
        weight = value(self.module.weight)
        columns = weight.reshape(*weight.shape[:1] or (1,), -1)
        if self.module.bias is not None:
            columns = torch.cat([columns, value(self.module.bias)[:, None]], 1)
        return columns.unflatten(0, (self.groups, -1))

    def parts(self, matrix: Tensor) -> dict[nn.Parameter, Tensor]:
        """Undo `matrix`."""
        columns, weight, bias = matrix.flatten(0, 1), self.module.weight, self.module.bias
        if bias is None:
            return {weight: columns.reshape(weight.shape)}
        return {weight: columns[:, :-1].reshape(weight.shape), bias: columns[:, -1]}

    def moment(self, rows: Tensor) -> Tensor:
        """Return the mean outer product of rows `[groups, N, D]`."""
        return rows.mT @ rows / rows.shape[1]

    def precondition(self, gradient: Tensor) -> Tensor:
        """Multiply by the inverse."""
        return gradient @ self.inverse

    def close_step(self) -> None:
        """Hear that a step ends."""

    def observe(self, inputs: Tensor, step: int | None) -> None:
        """Keep the rows of one forward pass."""
        if step is None:
            return
        self.observed_steps.add(step)
        rows = self.rows_of(self.module, inputs.detach())
        rows = rows[None] if rows.dim() == 2 else rows
        self.rows.append(rows if self.module.bias is None else F.pad(rows, (0, 1), value=1.0))

    def refresh(self, config: Config) -> None:
        """Average over time with bias correction, damp, invert."""
        if not self.rows:
            return
        rows = torch.cat(self.rows, 1)
        kept = config.ema_decay ** len(self.observed_steps)
        self.average = kept * self.average + (1 - kept) * self.moment(rows)
        self.weight = kept * self.weight + (1 - kept)
        self.rows.clear()
        self.observed_steps.clear()
        self.invert(self.average / self.weight, config)

    def invert(self, factor: Tensor, config: Config) -> None:
        """Count outputs as configured, damp and invert."""
        absolute = config.damping_abs
        if config.over_outputs == "mean":
            groups, outputs, _ = self.matrix(lambda p: p.detach()).shape
            factor, absolute = factor / (groups * outputs), absolute / (groups * outputs)
        trace = factor.diagonal(dim1=-2, dim2=-1).sum(-1).mean()
        damping = config.damping_rel_trace * trace + absolute
        if config.fisher == "diagonal":
            factor = factor * torch.eye(factor.shape[-1])
        if config.fisher == "block":
            number = torch.arange(factor.shape[-1]) // config.block_size
            if self.module.bias is not None and len(number) > 1:
                number[-1] = number[-2]
            factor = factor * (number[:, None] == number)
        if config.fisher == "sketch":
            size = factor.shape[-1]
            columns = min(config.rank or size, size)
            omega = sketch_basis(size, columns, factor.dtype, factor.device)
            approximations = [sketch_metric_reference(g, omega, float(damping)) for g in factor]
            self.inverse = torch.linalg.inv(torch.stack(approximations))
            return
        self.inverse = torch.linalg.inv(factor + damping * torch.eye(factor.shape[-1]))


class NaturalDescent:
    """Step a plain model as `torch.optim.SGD` steps its reconstructed network.

    Args:
        model: The plain model, changed in place.
        config: Schedule, average and damping.
        sgd: `lr` and optionally `momentum`, `nesterov`, `weight_decay`.
        clip: Largest Fisher norm of the gradient, or None.
        layer: What preconditions a linear layer or a convolution.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        sgd: dict[str, float],
        clip: float | None = None,
        layer: type[Layer] = Layer,
    ):
        self.model, self.config, self.clip = model, config, clip
        self.sgd = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, **sgd}
        self.steps = 0
        kinds = (nn.Linear, nn.Conv2d, Gain)
        modules = [module for module in model.modules() if isinstance(module, kinds)]
        self.layers = [
            (Layer if isinstance(module, Gain) else layer)(module, self.observed_step)
            for module in modules
        ]
        self.velocity = {p: torch.zeros_like(p) for p in model.parameters()}

    def observed_step(self) -> int | None:
        """Read the schedule: steps count from 0."""
        regular = self.steps % self.config.observe_every == 0
        return self.steps if regular or self.steps in self.config.early_observations else None

    @torch.no_grad()
    def step(self) -> None:
        """Precondition, clip, decay, move; then refresh where the schedule says so."""
        gradient = {p: p.grad for p in self.model.parameters()}
        natural = dict(gradient)
        for layer in self.layers:
            natural |= layer.parts(layer.precondition(layer.matrix(gradient.__getitem__)))
        scale = 1.0
        if self.clip is not None:
            squares = sum((gradient[p] * natural[p]).sum() for p in natural)
            scale = min(1.0, self.clip / (float(squares) ** 0.5 + 1e-6))
        for parameter, direction in natural.items():
            self.move(parameter, scale * direction)
        for layer in self.layers:
            layer.close_step()
        self.steps += 1
        due = self.steps % self.config.refresh_every == 0
        if due or self.steps in self.config.early_refreshes:
            self.refresh()

    def move(self, parameter: nn.Parameter, direction: Tensor) -> None:
        """Take one heavy-ball step; the decay of `w` is not preconditioned."""
        sgd = self.sgd
        direction = direction + sgd["weight_decay"] * parameter
        velocity = sgd["momentum"] * self.velocity[parameter] + direction
        self.velocity[parameter] = velocity
        ahead = direction + sgd["momentum"] * velocity if sgd["nesterov"] else velocity
        parameter.sub_(sgd["lr"] * ahead)

    def refresh(self) -> None:
        """Renew every layer's inverse."""
        for layer in self.layers:
            layer.refresh(self.config)
