"""The root of a weight alone: the bias that is mapped with it stays as it is.

Who decays weights and not biases, or gives each a rate of its own, means two parameters. Under a
root of both, `w' R`, each of the two moves what the other stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sngd_compile.fisher.roots.base import Change, FactorRoot, Pair, Root


class ApartRoot(Root):
    """A root of any kind over the weights of an output, and 1 over its bias.

    The local Fisher of a bias alone is the identity, so that plain descent on it is natural.

    Args:
        of_weight: The root, without a bias.

    Source: docs/method.md, local Fishers. Tested by tests/training/test_bias_apart.py.
    """

    has_bias = False

    def __init__(self, of_weight: Root) -> None:
        """Hold it."""
        super().__init__()
        self.of_weight = of_weight

    @property
    def sides(self) -> Sequence[FactorRoot]:
        """Those of the weight's root."""
        return self.of_weight.sides

    def matrix(self) -> Tensor:
        """Return `R` of the weight."""
        return self.of_weight.matrix()

    def squared_norm(self) -> Tensor:
        """Return that of the weight's root."""
        return self.of_weight.squared_norm()

    def singular_range(self) -> tuple[Tensor, Tensor]:
        """Return those of the weight's root."""
        return self.of_weight.singular_range()

    def output_matrix(self) -> Tensor | None:
        """Return that of the weight's root."""
        return self.of_weight.output_matrix()

    def channel_numbers(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return those of the weight's root, which leave a bias as it is."""
        return self.of_weight.channel_numbers()

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` and `b'`."""
        # A copy: nobody who changes a folded bias shall change the parameter.
        same = None if bias is None else bias.clone()
        return self.of_weight.fold(weight, None)[0], same

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` and `b`."""
        return self.of_weight.unfold(weight, None)[0], bias

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradients `g R^T` and that of the bias."""
        return self.of_weight.to_prime(weight, None)[0], bias

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradients `g' R^-T` and that of the bias."""
        return self.of_weight.from_prime(weight, None)[0], bias

    def moves_to(self, new: Any, outputs: int, width: int) -> tuple[Change, Change]:
        """Return how `w'` moves, as the weight's root knows it, while `b'` stays."""
        if not isinstance(new, ApartRoot):
            return super().moves_to(new, outputs, width)
        step, gradient = self.of_weight.moves_to(new.of_weight, outputs, width)

        def alone(change: Change) -> Change:
            return lambda weight, bias: (change(weight, None)[0], bias)

        return alone(step), alone(gradient)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W' (R x) + b'` for rows `[N, K]`: the activation side."""
        output = self.of_weight.linear(rows, weight, None)
        return output if bias is None else output + bias
