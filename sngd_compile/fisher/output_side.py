"""The output side of a Kronecker-factored local Fisher: gradients of the loss by a layer's outputs.

Legend: N samples, T positions of one sample, O outputs; g the gradient of the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sngd_compile.fisher.average import absorb_
from sngd_compile.layout import Layout

SAMPLES, STEPS, OUTLIER = range(3)  # entries of OutputSide.tally


class OutputSide(nn.Module):
    """Hold the second moment `B = N sum g g^T` of one layer's output gradients.

    The sum is over all samples and positions of a step. A loss is a mean over N samples, so the
    gradient of one of them is `N g`, and B is the mean over samples of the sum over positions of
    its outer products: it does not depend on the batch size. Everything is float64, so that
    gradients of 1e-12 and far less keep their digits.

    Args:
        layout: How the weight is laid out as matrices `[*, O, K]`.
        device: Where the buffers live.

    Attributes:
        sum: Sum of `g g^T` of the present step, `[*, O, O]`.
        total: Sum over the steps since the last refresh of their B.
        factor: B as estimated, without damping, `[*, O, O]`; zero until the first refresh.
        damping: Absolute damping inside the present root, in the units of B.

    Source: K-FAC (arXiv 1503.05671); for positions KFC (arXiv 1602.01407).
    """

    sum: Tensor
    total: Tensor
    factor: Tensor
    tally: Tensor
    average_weight: Tensor
    absolute_damping: Tensor

    def __init__(self, layout: Layout, device: torch.device) -> None:
        """Start with nothing seen."""
        super().__init__()
        self.size = layout.outputs
        lead = () if layout.groups is None else (layout.groups,)
        for name, shape in (
            *((name, (*lead, self.size, self.size)) for name in ("sum", "total", "factor")),
            ("average_weight", ()),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64, device=device))
        self.register_buffer("absolute_damping", torch.ones((), dtype=torch.float64, device=device))
        self.register_buffer("tally", torch.zeros(3, dtype=torch.int64, device=device))

    @property
    def damping(self) -> float:
        """Absolute damping inside the present root, in the units of B."""
        return float(self.absolute_damping)

    @property
    def is_empty(self) -> bool:
        """Whether no gradient was ever counted."""
        return not (float(self.average_weight) or int(self.tally[STEPS]))

    @torch.no_grad()
    def take_joint_(self, sum: Tensor, samples: Tensor, processes: int) -> None:
        """Hold the present step of all processes, in the place of this one's.

        Each has the gradient of a loss of its own, of which the joint one is the mean.
        """
        self.sum.copy_(sum).div_(processes**2)
        self.tally[SAMPLES].copy_(samples)

    @torch.no_grad()
    def close_step_(self) -> None:
        """Count the present step: its B needs the number of all its samples."""
        # Known only now: a step may have had several backward passes, and N counts all of them.
        self.total.addcmul_(self.sum, self.tally[SAMPLES].double())
        self.tally[STEPS].add_(self.tally[SAMPLES] > 0)
        self.discard_step_()

    def discard_step_(self) -> None:
        """Forget the present step."""
        self.sum.zero_()
        self.tally[SAMPLES].zero_()

    def keep_step_(self, kept: Tensor) -> None:
        """Forget the present step where `kept` is False, without waiting for a device."""
        self.sum.copy_(torch.where(kept, self.sum, 0.0))
        self.tally[SAMPLES].mul_(kept)

    @torch.no_grad()
    def absorb_(self, kept: float) -> None:
        """Move the mean over steps into the running average, whose past counts `kept`."""
        steps = int(self.tally[STEPS])
        if steps == 0:
            return
        average = (self.factor, self.average_weight, self.total, steps, kept)
        absorb_(*average, _trace, self.tally[OUTLIER])
        self.total.zero_()
        self.tally[STEPS].zero_()

    def forget_(self) -> None:
        """Return to the state before the first observation."""
        for buffer in self.buffers():
            buffer.zero_()
        self.absolute_damping.fill_(1.0)


def _trace(matrices: Tensor) -> float:
    return float(matrices.diagonal(dim1=-2, dim2=-1).sum())
