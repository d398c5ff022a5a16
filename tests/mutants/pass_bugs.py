"""Bugs in what must happen together: the folds of one forward pass, the parts of one refresh."""

from typing import Any

import torch

from bug import caught_by, wrap
from sngd_compile.fisher import folding, forward_pass
from sngd_compile.fisher.forward_pass import ForwardPass
from sngd_compile.training import refresh
from sngd_compile.training.transaction import Kept

REFRESH = ("tests/training/test_interrupted.py",)
TESTS = ("tests/modules/test_whole_network.py",)


@caught_by(TESTS)
def written_within_a_pass() -> None:
    """A weight that was folded ahead is taken although it was written to since."""
    forward_pass.version_of = lambda tensor: 0


@caught_by(TESTS)
def passes_that_do_not_end() -> None:
    """What a forward pass folded serves the next one too."""
    ForwardPass.close = lambda self: None


@caught_by(TESTS)
def zeros_for_unused_weights() -> None:
    """A weight that was folded and not used gets a gradient of zeros."""
    original = folding._completed

    def completed(halves: Any, gradients: Any) -> Any:
        given = original(halves, gradients)
        pairs = zip(given, halves, strict=True)
        return [
            torch.zeros_like(half) if g is None and half is not None else g for g, half in pairs
        ]

    folding._completed = completed


@caught_by(TESTS)
def frozen_with_the_trained() -> None:
    """Weights that are frozen are folded in the node of those that are trained."""
    wrap(
        ForwardPass,
        "__init__",
        lambda original, self, wanted: original(self, [_thawed(w) for w in wanted]),
    )


def _thawed(parameters: Any) -> Any:
    fisher, weight, bias = parameters
    weight.requires_grad_(True)
    return fisher, weight, bias


@caught_by(REFRESH)
def half_a_refresh() -> None:
    """A refresh that is interrupted leaves a weight in other coordinates than its root."""
    refresh.Kept = lambda tensors: Kept(())  # type: ignore[assignment,misc]
