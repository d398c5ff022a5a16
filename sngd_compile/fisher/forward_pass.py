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


class Folded:
    """A weight that a forward pass has folded.

    Args:
        parameters: What was folded.
        pair: The folded weight and bias.

    Attributes:
        is_taken: Whether the pass has asked for it.
    """

    __slots__ = ("bias", "bias_version", "is_taken", "pair", "weight", "weight_version")

    def __init__(self, parameters: Parameters, pair: Pair) -> None:
        """Note which versions of the parameters were folded."""
        _, weight, bias = parameters
        self.weight, self.bias = weight, bias
        # Written out, since every weight of every step comes here; None where none is counted.
        self.weight_version = None if weight.is_inference() else version_of(weight)
        self.bias_version = None if bias is None or bias.is_inference() else version_of(bias)
        self.pair, self.is_taken = pair, False

    def is_of(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Say whether these parameters need not be folded again."""
        # `functional_call` puts other tensors in, and hooks may write to those that are there.
        if self.weight is not weight or self.bias is not bias:
            return False
        if self.weight_version is not None and self.weight_version != version_of(weight):
            return False
        if bias is not None and self.bias_version not in (None, version_of(bias)):
            return False
        # What was folded without a gradient has none.
        return not weight.requires_grad or self.pair[0].requires_grad or not torch.is_grad_enabled()


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
        self._folded: dict[FisherLayer, Folded] = {}
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
        if _is_large(weight):
            return fold_together([fisher], [weight], [bias])[0]
        # Kept for the next use in this pass: sums of gradients are then the same, to the bit,
        # whether the weight was folded ahead or not.
        (folded,) = self._fold([(fisher, weight, bias)])
        folded.is_taken = True
        return folded.pair

    def known(self, fisher: FisherLayer, weight: Tensor, bias: Tensor | None) -> Pair | None:
        """Return what was folded; None where these parameters have to be folded now."""
        folded = self._folded.get(fisher)
        if folded is None or not folded.is_of(weight, bias):
            return None
        folded.is_taken = True
        return folded.pair

    def close(self) -> None:
        """Keep nothing; what was asked for, and only that, is folded ahead the next time."""
        self.is_open = False
        # A copy, since another thread may be in a forward pass of the same network.
        for fisher, known in [*self._folded.items()]:
            fisher.ties.is_folded_whole = known.is_taken
        # Each layer holds its last pass, and none may keep the others alive.
        self._folded.clear()

    def _fold(self, some: Sequence[Parameters]) -> list[Folded]:
        layers, weights, biases = zip(*some, strict=True)
        pairs = fold_together(layers, weights, biases)
        made = [Folded(parameters, pair) for parameters, pair in zip(some, pairs, strict=True)]
        # Not read again here: another thread may end its pass, and with it this one, meanwhile.
        self._folded.update(zip(layers, made, strict=True))
        return made


def leave_unfolded(fisher: FisherLayer) -> None:
    """Note that a layer had no need of its whole weight, so that the next pass leaves it out."""
    # A graph folds where it is: noting that in it would be a side effect of every call.
    if not torch.compiler.is_compiling():
        fisher.ties.is_folded_whole = False


def folded_ahead(fisher: FisherLayer, weight: Tensor, bias: Tensor | None) -> Pair | None:
    """Return `w' R` if the forward pass that is running has folded these; None in a graph."""
    if torch.compiler.is_compiling():
        return None
    running: ForwardPass | None = fisher.ties.forward_pass
    return None if running is None or not running.is_open else running.known(fisher, weight, bias)


def fold_in_pass(fisher: FisherLayer, weight: Tensor, bias: Tensor | None) -> Pair:
    """Return `w' R`, and keep it for the forward pass that is running where there is one."""
    running: ForwardPass | None = fisher.ties.forward_pass
    if running is not None and running.is_open:
        return running.fold(fisher, weight, bias)
    (pair,) = fold_together([fisher], [weight], [bias])
    return pair


def _is_large(weight: Tensor) -> bool:
    return weight.numel() > LARGEST_FOLDED_AHEAD
