"""A kind of root that this project does not have: `R = diag(d)^(-1/2) Q^T`, of `G = Q diag(d) Q^T`.

It is neither symmetric nor triangular.
"""

import torch

from sngd_compile.fisher.roots.base import Decomposition, FactorRoot
from sngd_compile.fisher.roots.pairs import join, split
from sngd_compile.registry import register_root


@register_root("rotated")
class RotatedRoot(FactorRoot):
    """Rotate into the eigenvectors, then scale."""

    def __init__(self, shape):
        """Start as the identity."""
        super().__init__(shape)
        self.register_buffer("whole", shape.identity(shape.size))

    @classmethod
    def decompose(cls, damped, roots):
        """Find the eigenpairs."""
        values, vectors = torch.linalg.eigh(damped)
        return Decomposition((values.rsqrt()[..., None] * vectors.mT,), values.amin(-1) <= 0)

    def take_(self, *parts):
        """Become the root."""
        (self.whole,) = parts

    def matrix(self):
        """Return it."""
        return self.whole.clone()

    def fold(self, weight, bias):
        """Return `w' R`."""
        return split(join(weight, bias) @ self.whole, bias)

    def unfold(self, weight, bias):
        """Return `w R^-1`."""
        return split(torch.linalg.solve(self.whole, join(weight, bias), left=False), bias)

    def to_prime(self, weight, bias):
        """Return `g R^T`."""
        return split(join(weight, bias) @ self.whole.mT, bias)

    def from_prime(self, weight, bias):
        """Return `g' R^-T`."""
        return split(torch.linalg.solve(self.whole.mT, join(weight, bias), left=False), bias)

    def linear(self, rows, weight, bias):
        """Return `W' (R x~)`."""
        return torch.nn.functional.linear(rows, *self.fold(weight, bias))
