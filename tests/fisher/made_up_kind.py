"""A kind of local Fisher that this project does not have: `E[|x~|^2] / D` times the identity."""

from sngd_compile.fisher.kinds.base import FisherKind
from sngd_compile.registry import register_kind


@register_kind
class Isotropic(FisherKind):
    """Every direction has the mean of the second moments."""

    name = "isotropic"

    def add_rows(self, spec, statistics, samples, outputs, geometry, sum):
        """Add the mean of the squares to the diagonal."""
        zeros = sum.new_zeros((*sum.shape[:-2], spec.size))
        squares = statistics.diagonal(samples, geometry, spec.has_bias, zeros)
        self.diagonal(sum).add_(squares.mean(-1, keepdim=True))
