"""K-FAC on `w`, written out: both factors, their inverses and their shares of the damping."""

import torch
from torch import Tensor, nn

from sngd_compile import Config
from theorem.descent import Layer


class KroneckerLayer(Layer):
    """A linear layer or convolution whose gradient is multiplied by `B^-1` and by `A^-1`."""

    def __init__(self, module, observed_step):
        super().__init__(module, observed_step)
        self.gradients: list[Tensor] = []
        self.steps: list[Tensor] = []
        self.output_average = self.output_weight = 0.0
        outputs = module.weight.shape[0] // self.groups
        self.output_inverse = torch.eye(outputs)
        module.register_forward_hook(lambda _, inputs, y: self.observe_outputs(y, observed_step()))

    def observe_outputs(self, outputs: Tensor, step: int | None) -> None:
        """Keep the gradient of one forward pass when it comes."""
        if step is not None and outputs.requires_grad:
            outputs.register_hook(lambda gradient: self.gradients.append(self.by_sample(gradient)))

    def by_sample(self, gradient: Tensor) -> Tensor:
        """Return `[samples, positions, groups, O / groups]`: of a convolution an image is one."""
        if isinstance(self.module, nn.Linear):
            rows = gradient.reshape(-1, 1, gradient.shape[-1])
        else:
            rows = gradient.flatten(2).mT
        return rows.unflatten(-1, (self.groups, -1))

    def close_step(self) -> None:
        """Undo the mean over samples: with `N g` for the gradient of one of N samples."""
        if self.gradients:
            each = torch.cat(self.gradients).movedim(2, 0)
            of_one = each * each.shape[1]
            moment = torch.einsum("gnto,gntp->gop", of_one, of_one) / each.shape[1]
            self.steps.append(moment)
            self.gradients.clear()

    def precondition(self, gradient: Tensor) -> Tensor:
        """Multiply from both sides."""
        return self.output_inverse @ gradient @ self.inverse

    def refresh(self, config: Config) -> None:
        """Average both over time, damp, invert."""
        self.close_step()
        kept = config.ema_decay ** max(1, len(self.observed_steps))
        if self.steps:
            mean = torch.stack(self.steps).mean(0)
            self.output_average = kept * self.output_average + (1 - kept) * mean
            self.output_weight = kept * self.output_weight + (1 - kept)
            self.steps.clear()
        super().refresh(config)

    def invert(self, factor: Tensor, config: Config) -> None:
        """Damp `A (x) B` with the trace-norm pi of the K-FAC paper."""
        other = self.output_average / self.output_weight
        sizes = factor.shape[-1], other.shape[-1]
        traces = [f.diagonal(dim1=-2, dim2=-1).sum(-1).mean() for f in (factor, other)]
        means = [trace / size for trace, size in zip(traces, sizes, strict=True)]
        relative = config.damping_rel_trace**2 * traces[0] * traces[1]
        strength = relative + config.damping_abs * means[1]
        pi = (means[0] / means[1]).sqrt()
        self.inverse = torch.linalg.inv(factor + pi * strength.sqrt() * torch.eye(sizes[0]))
        self.output_inverse = torch.linalg.inv(other + strength.sqrt() / pi * torch.eye(sizes[1]))
