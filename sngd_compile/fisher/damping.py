"""How much of the identity is added to a local Fisher with two factors, and to which of them."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from sngd_compile.config import Config

Damped = tuple[Tensor, float]
"""A matrix to decompose, and the damping that is in it or goes with it."""


def share(inputs: Tensor, outputs: Tensor, config: Config) -> tuple[Damped, ...]:
    """Share the damping of `A (x) B` between the two: `A + pi d`, `B + d / pi`.

    `d^2 = damping_rel_trace^2 trace(A) trace(B) + damping_abs`, and `pi^2` is the mean eigenvalue
    of A over that of B. Of groups the traces are means. () for a factor of zeros.

    Args:
        inputs: A, `[*, D, D]`.
        outputs: B, `[*, O, O]`, float64.
        config: With the strengths.

    Source: K-FAC (arXiv 1503.05671), section 6.3.
    """
    traces = [float(traces_of(factor).mean()) for factor in (inputs, outputs)]
    if 0.0 in traces:
        return ()
    relative = config.damping_rel_trace**2 * traces[0] * traces[1]
    damping = sqrt(relative + config.damping_abs)
    pi = sqrt(traces[0] * outputs.shape[-1] / (inputs.shape[-1] * traces[1]))
    damped = []
    for factor, part in ((inputs, damping * pi), (outputs, damping / pi)):
        matrix = factor.to(torch.float64, copy=True)
        matrix.diagonal(dim1=-2, dim2=-1).add_(part)
        damped.append((matrix, part))
    return tuple(damped)


def keep_whole(inputs: Tensor, outputs: Tensor, config: Config) -> tuple[Damped, ...]:
    """Return A and B as they are, and with each the damping of `A (x) B`.

    It is `damping_rel_trace trace(A) trace(B) + damping_abs`, and `trace(A) trace(B)` is the trace
    of `A (x) B`; of groups the mean. () for a factor of zeros.

    Args:
        inputs: A, `[*, D, D]`.
        outputs: B, `[*, O, O]`, float64.
        config: With the strengths.

    Source: K-FAC (arXiv 1503.05671), section 6.2.
    """
    trace = float((traces_of(inputs) * traces_of(outputs)).mean())
    if trace == 0.0:
        return ()
    damping = config.damping_rel_trace * trace + config.damping_abs
    return tuple((factor.to(torch.float64), damping) for factor in (inputs, outputs))


def traces_of(factor: Tensor) -> Tensor:
    """Return the trace of every block of `[*, D, D]`, in float64."""
    return factor.diagonal(dim1=-2, dim2=-1).sum(-1).double()
