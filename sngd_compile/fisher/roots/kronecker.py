"""The two roots of a Kronecker-factored local Fisher: `w = R_B^T w' R_A`."""

from __future__ import annotations

from torch import Tensor

from sngd_compile.fisher.roots.base import Change, FactorRoot, Pair, Root
from sngd_compile.fisher.roots.pairs import join, split


class KroneckerRoot(Root):
    """Two local Fisher layers: `R_A` on the inputs of a layer, `R_B^T` on its outputs.

    With `w = R_B^T w' R_A` the gradient of `w'` is `R_B g R_A^T`, so a step of plain gradient
    descent on `w'` is `w <- w - lr B^-1 g A^-1`: K-FAC.

    Args:
        input_root: Of A, `[*, D, D]`, the bias last.
        output_root: Of B, `[*, O, O]`.

    Source: K-FAC (Martens and Grosse 2015, arXiv 1503.05671); docs/method.md, local Fishers.
    Tested by tests/fisher/test_kronecker.py.
    """

    def __init__(self, input_root: FactorRoot, output_root: FactorRoot) -> None:
        """Hold both."""
        super().__init__()
        self.input_root, self.output_root = input_root, output_root
        self.has_bias = input_root.has_bias

    @property
    def sides(self) -> list[FactorRoot]:
        """The roots that are decomposed one by one."""
        return [self.input_root, self.output_root]

    def matrix(self) -> Tensor:
        """Return `R_A` `[*, D, D]`, the bias last."""
        return self.input_root.matrix()

    def output_matrix(self) -> Tensor:
        """Return `R_B` `[*, O, O]`."""
        return self.output_root.matrix()

    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `R_B^T w' R_A` for `W' [*, O, K]`, `b' [*, O]`."""
        return _on_outputs(self.output_root.fold, *self.input_root.fold(weight, bias))

    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `R_B^-T w R_A^-1` for `W [*, O, K]`, `b [*, O]`."""
        return _on_outputs(self.output_root.unfold, *self.input_root.unfold(weight, bias))

    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `R_B g R_A^T` that `w'` has where `w` has `g`."""
        return _on_outputs(self.output_root.to_prime, *self.input_root.to_prime(weight, bias))

    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `R_B^-1 g' R_A^-T` that `w` has where `w'` has `g'`."""
        return _on_outputs(self.output_root.from_prime, *self.input_root.from_prime(weight, bias))

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `R_B^T W' (R_A x~)` for rows `[N, K]`: the activation side."""
        # `R_B^T y` of rows is `y R_B`: the map of a weight.
        return self.output_root.fold(self.input_root.linear(rows, weight, bias), None)[0]


def _on_outputs(change: Change, weight: Tensor, bias: Tensor | None) -> Pair:
    """Apply a map of rows to the columns of `[W b]`, `[*, O, K]` and `[*, O]`."""
    changed_weight, changed_bias = split(change(join(weight, bias).mT, None)[0].mT, bias)
    return changed_weight.contiguous(), changed_bias
