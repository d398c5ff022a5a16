"""Bugs in the output side of a Kronecker-factored local Fisher."""

from typing import Any

import torch
from torch import Tensor

from bug import caught_by, wrap
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.output_side import SAMPLES, OutputSide
from sngd_compile.fisher.roots.kronecker import KroneckerRoot
from sngd_compile.rules.convolution import Convolution

LAWS = ("tests/rules/test_linear.py", "-k", "output_side")
OF_CONVOLUTIONS = ("tests/rules/test_convolution.py", "-k", "output_side")


@caught_by(LAWS)
def reduction_kept() -> None:
    """The gradients keep the `1 / N` of the loss."""

    def close(original: Any, side: OutputSide) -> None:
        side.sum.div_(side.tally[SAMPLES].clamp(min=1).square())
        original(side)

    wrap(OutputSide, "close_step_", close)


@caught_by(OF_CONVOLUTIONS)
def positions_counted_as_samples() -> None:
    """Every position of an image is one more sample."""

    def output_rows(original: Any, rule: Any, outputs: Tensor, geometry: Any) -> Tensor:
        return original(rule, outputs, geometry).flatten(0, 1).unsqueeze(1)

    wrap(Convolution, "output_rows", output_rows)


@caught_by(LAWS)
def gradient_moved_like_a_weight() -> None:
    """An accumulated gradient moves by the map of the weights, on both sides."""
    KroneckerRoot.to_prime, KroneckerRoot.from_prime = KroneckerRoot.unfold, KroneckerRoot.fold


@caught_by(LAWS)
def damping_not_shared_by_pi() -> None:
    """Both sides get the same damping."""

    def damped(original: Any, layer: FisherLayer) -> Any:
        found = original(layer)
        if len(found) != 2:
            return found
        (first, one), (second, other) = found
        same = (one * other) ** 0.5
        eyes = [torch.eye(m.shape[-1], dtype=m.dtype) for m in (first, second)]
        return (first + (same - one) * eyes[0], same), (second + (same - other) * eyes[1], same)

    wrap(FisherLayer, "damped", damped)
