"""Bugs in the local Fishers that divide a layer: into blocks of inputs, into units."""

from typing import Any

import torch
from torch import Tensor

import sngd_kernels
from bug import caught_by, wrap
from sngd_compile.fisher import observe
from sngd_compile.fisher.information import INFORMATION
from sngd_compile.fisher.kinds import block
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.roots.block import BlockRoot
from sngd_compile.fisher.roots.unit import UnitRoot
from sngd_compile.plan import activation
from sngd_compile.rules import Rule
from sngd_compile.training.change_guard import ChangeGuard

BLOCK = ("tests/fisher/test_block.py",)
BLOCK_PLAN = (*BLOCK, "-k", "plan")
UNIT = ("tests/fisher/test_unit.py",)
UNIT_PLAN = ("tests/fisher/test_unit_plan.py",)


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
        block,
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


@caught_by(UNIT)
def relu_by_its_step() -> None:
    """A ReLU that is off tells nothing."""
    INFORMATION["relu"] = lambda a: (a > 0).to(a.dtype)


@caught_by(UNIT)
def information_without_its_square() -> None:
    """A GELU's information is its slope."""
    gelu = INFORMATION["gelu"]
    INFORMATION["gelu"] = lambda a: gelu(a).sqrt()


@caught_by(UNIT)
def units_see_other_rows_than_their_outputs() -> None:
    """The rows that are drawn belong to other outputs."""

    def shifted(original: Any, samples: Any, *arguments: Any) -> Any:
        drawn = original(samples, *arguments)
        return drawn if len(drawn) == 1 else [*drawn[:-1], drawn[-1].roll(1, 0)]

    wrap(observe, "draw", shifted)


@caught_by(UNIT)
def units_have_the_mean_weight() -> None:
    """Every unit weighs the rows by the mean of all."""

    add = sngd_kernels.unit_second_moment

    def averaged(rows: Tensor, nu: Tensor, **options: Any) -> Any:
        return add(rows, nu.mean(-1, keepdim=True).expand_as(nu), **options)

    sngd_kernels.unit_second_moment = averaged


@caught_by(UNIT)
def units_swapped_at_a_refresh() -> None:
    """What unfolds a weight takes the roots in another order than what folds it."""

    def unfold(original: Any, root: UnitRoot, weight: Tensor, bias: Tensor | None) -> Any:
        changed, changed_bias = original(
            root, weight.flip(-2), None if bias is None else bias.flip(-1)
        )
        return changed.flip(-2), None if changed_bias is None else changed_bias.flip(-1)

    wrap(UnitRoot, "unfold", unfold)
    ChangeGuard.allows = lambda self, change: True  # type: ignore[method-assign] - it would notice


@caught_by(UNIT_PLAN)
def one_reader_of_two() -> None:
    """An activation is found although something else reads the pre-activation too."""
    common = activation.common
    activation.common = lambda found: common(sorted(found, key=lambda one: not one.activation)[:1])
