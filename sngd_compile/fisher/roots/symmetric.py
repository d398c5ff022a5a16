"""The symmetric root `G^(-1/2)` of the paper."""

from __future__ import annotations

from sngd_compile.fisher.roots.dense import MatrixRoot


class SymmetricRoot(MatrixRoot):
    """The symmetric root `R = G^(-1/2)`, for which `R^T` is `R`.

    Source: arXiv 2412.07441, `w = G^(-1/2) w'`. Law 7 tests `R (G + damping) R^T = I`.
    """

    buffer = "symmetric"
