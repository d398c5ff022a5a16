"""Bugs in the local Fishers that divide a layer: blocks of inputs."""

from typing import Any

import torch
from torch import Tensor

import sngd_compile.finer
from bug import caught_by, wrap
from sngd_compile.rules import Rule
from sngd_compile.runtime.block import BlockRoot
from sngd_compile.runtime.fisher import FisherLayer

BLOCK = ("tests/fishers/test_block.py",)
BLOCK_PLAN = (*BLOCK, "-k", "plan")


@caught_by(BLOCK)
def bias_in_no_block() -> None:
    """The factor of the last block forgets that its inputs and the bias's 1 are correlated."""

    def block_moments(original: Any, rule: Rule, samples: Any, geometry: Any, bias: bool, out: Any):
        original(rule, samples, geometry, bias, out)
        if bias:
            out[-1][..., -1, :-1] = out[-1][..., :-1, -1] = 0.0

    wrap(Rule, "block_moments", block_moments)


@caught_by(BLOCK_PLAN)
def blocks_ignore_channels() -> None:
    """A convolution's blocks are cut without regard to its channels."""
    wrap(
        sngd_compile.finer,
        "block_sizes",
        lambda original, width, size, taps, has_bias: original(width, size, 1, has_bias),
    )


@caught_by(BLOCK)
def blocks_damped_by_their_own_trace() -> None:
    """The damping of the last block is relative to its trace alone."""

    def damped(original: Any, fisher: FisherLayer) -> Any:
        found = original(fisher)
        if fisher.kind != "block" or not found:
            return found
        matrix, damping = found[-1]
        eye = torch.eye(matrix.shape[-1])
        trace = (matrix - damping * eye).diagonal(dim1=-2, dim2=-1).sum(-1).mean()
        own = fisher.config.damping_rel_trace * float(trace) + fisher.config.damping_abs
        return (*found[:-1], (matrix + (own - damping) * eye, own))

    wrap(FisherLayer, "damped", damped)


@caught_by(BLOCK)
def blocks_in_another_order() -> None:
    """The roots of the blocks are applied to the wrong inputs."""

    def in_head(original: Any, root: BlockRoot, change: Any, columns: Tensor) -> Tensor:
        blocks = columns.unflatten(-1, (root.count, root.size)).flip(-2).flatten(-2)
        changed = original(root, change, blocks)
        return changed.unflatten(-1, (root.count, root.size)).flip(-2).flatten(-2)

    wrap(BlockRoot, "_in_head", in_head)
