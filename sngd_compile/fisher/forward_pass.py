"""What one forward pass of a network folds, all small weights of it at its beginning.

It lasts as long as the forward pass: what is written to a parameter between two passes, by
whatever way, is seen by the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sngd_compile.fisher.folding import fold_together
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.roots.base import Pair
from sngd_compile.torch_private import version_of

LARGEST_FOLDED_AHEAD = 2**17
"""Elements of a weight up to which it is folded with others and kept for the pass.

Larger ones gain little by that. All at once they would take as much memory as the network, where
activation checkpointing or `no_grad` would have freed one after the other, and so would their
gradients.
"""

Parameters = tuple[FisherLayer, Tensor, Tensor | None]
"""A Fisher layer, its `w'` and its `b'`."""


class ForwardPass:
    """The weights that a forward pass of a network has folded, each once.

    Args:
        wanted: The weights of the network, each once.

    Attributes:
        is_open: Whether the forward pass is still running.
    """

    def __init__(self, wanted: Iterable[Parameters]) -> None:
        """Fold those that the last pass folded as a whole."""
        self.is_open = True
        self._folded: dict[FisherLayer, tuple[Parameters, tuple[int, int], Pair]] = {}
        self._taken: set[FisherLayer] = set()
        trained: list[Parameters] = []
        frozen: list[Parameters] = []
        for parameters in wanted:
            fisher, weight, bias = parameters
            fisher.ties.forward_pass = self
            if not fisher.ties.is_folded_whole or _is_large(weight):
                continue
            needs = weight.requires_grad
            if bias is None or bias.requires_grad == needs:
                (trained if needs else frozen).append(parameters)
        # One node makes all that it returns require a gradient: a frozen weight must not.
        for some in (trained, frozen):
            if some:
                self._fold(some)

    def fold(self, fisher: FisherLayer, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the folded weight and bias."""
        parameters = fisher, weight, bias
        pair = self._known(parameters)
        if pair is None:
            # Kept for the next use in this pass: sums of gradients are then the same, to the bit,
            # whether the weight was folded ahead or not.
            (pair,) = self._fold([parameters])
        fisher.ties.is_folded_whole = True
        self._taken.add(fisher)
        return pair

    def close(self) -> None:
        """Keep nothing; a layer that was not asked for is not folded ahead the next time."""
        self.is_open = False
        # Copies, since another thread may be in a forward pass of the same network.
        for fisher in {*self._folded} - {*self._taken}:
            fisher.ties.is_folded_whole = False
        self._folded.clear()
        # Each layer holds its last pass, and none may keep the others alive.
        self._taken.clear()

    def _fold(self, some: Sequence[Parameters]) -> list[Pair]:
        layers, weights, biases = zip(*some, strict=True)
        pairs = fold_together(layers, weights, biases)
        for parameters, pair in zip(some, pairs, strict=True):
            self._folded[parameters[0]] = parameters, _versions(parameters), pair
        return pairs

    def _known(self, parameters: Parameters) -> Pair | None:
        """Return what was folded; None where these parameters have to be folded now."""
        fisher, weight, bias = parameters
        known = self._folded.get(fisher)
        if known is None:
            return None
        (_, known_weight, known_bias), versions, pair = known
        # `functional_call` puts other tensors in, and hooks may write to those that are there.
        if known_weight is not weight or known_bias is not bias:
            return None
        # What was folded without a gradient has none.
        is_blind = weight.requires_grad and torch.is_grad_enabled() and not pair[0].requires_grad
        return None if is_blind or versions != _versions(parameters) else pair


def leave_unfolded(fisher: FisherLayer) -> None:
    """Note that a layer had no need of its whole weight, so that the next pass leaves it out."""
    # A graph folds where it is: noting that in it would be a side effect of every call.
    if not torch.compiler.is_compiling():
        fisher.ties.is_folded_whole = False


def fold_in_pass(fisher: FisherLayer, weight: Tensor, bias: Tensor | None) -> Pair:
    """Return `w' R`, from the forward pass that is running where there is one."""
    running: ForwardPass | None = fisher.ties.forward_pass
    if running is not None and running.is_open and not _is_large(weight):
        return running.fold(fisher, weight, bias)
    (pair,) = fold_together([fisher], [weight], [bias])
    return pair


def _is_large(weight: Tensor) -> bool:
    return weight.numel() > LARGEST_FOLDED_AHEAD


def _versions(parameters: Parameters) -> tuple[int, int]:
    _, weight, bias = parameters
    return _version(weight), 0 if bias is None else _version(bias)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else version_of(tensor)
