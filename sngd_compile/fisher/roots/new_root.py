"""The root with which a local Fisher starts: an identity of the class that its kind asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sngd_compile.config import Config
from sngd_compile.fisher.roots.block import BlockRoot
from sngd_compile.fisher.roots.cholesky import CholeskyRoot
from sngd_compile.fisher.roots.decompose import Root
from sngd_compile.fisher.roots.dense import DenseRoot
from sngd_compile.fisher.roots.diagonal import DiagonalRoot
from sngd_compile.fisher.roots.eigen import Eigenbasis, EigenRoot
from sngd_compile.fisher.roots.kronecker import FullRoot, KroneckerRoot
from sngd_compile.fisher.roots.low_rank import LowRankRoot
from sngd_compile.fisher.roots.softmax import SoftmaxRoot
from sngd_compile.fisher.roots.symmetric import SymmetricRoot
from sngd_compile.fisher.roots.unit import UnitRoot
from sngd_compile.layout import Layout

FULL_ROOTS: dict[str, type[FullRoot]] = {
    "cholesky": CholeskyRoot,
    "symmetric": SymmetricRoot,
    "denman_beavers": SymmetricRoot,
    "newton_schulz": SymmetricRoot,
    "warm": DenseRoot,
    "nystrom": LowRankRoot,
}


def identity_root(
    kind: str,
    config: Config,
    layout: Layout,
    has_bias: bool,
    blocks: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> Root:
    """Return the root with which a Fisher layer starts; see `FisherLayer` and `Config.root`."""
    size, groups = layout.width + has_bias, layout.groups

    def full(size: int, has_bias: bool, groups: int | None) -> FullRoot:
        made = FULL_ROOTS[config.root]
        if issubclass(made, LowRankRoot):
            return made(size, has_bias, groups, dtype, device, config.rank)
        return made(size, has_bias, groups, dtype, device)

    if kind == "diagonal":
        return DiagonalRoot(size, has_bias, groups, dtype, device)
    if kind == "block":
        head = full(blocks[0], False, (groups or 1) * (len(blocks) - 1))
        return BlockRoot(head, full(blocks[-1], has_bias, groups), blocks)
    if kind == "unit":
        return UnitRoot(full(size, has_bias, layout.all_outputs), has_bias)
    if kind == "softmax":
        return SoftmaxRoot(full(layout.outputs * size, False, None), has_bias)
    if kind == "eigen":
        inputs = Eigenbasis(size, has_bias, groups, dtype, device)
        return EigenRoot(inputs, Eigenbasis(layout.outputs, False, groups, dtype, device))
    one = full(size, has_bias, groups)
    return KroneckerRoot(one, full(layout.outputs, False, groups)) if kind == "kronecker" else one
