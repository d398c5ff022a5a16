"""Bugs in the local Fishers that divide a layer or take it whole: blocks, units, logits."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import sngd_compile.plan.fisher_kind
import sngd_compile.plan.logits
from bug import caught_by, wrap
from sngd_compile.fisher import observe_units
from sngd_compile.fisher.information import INFORMATION
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.roots.block import BlockRoot
from sngd_compile.fisher.roots.softmax import SoftmaxRoot
from sngd_compile.fisher.roots.unit import UnitRoot
from sngd_compile.plan import activation as following
from sngd_compile.rules import Rule

BLOCK = ("tests/fishers/test_block.py",)
BLOCK_PLAN = (*BLOCK, "-k", "plan")
UNIT = ("tests/fishers/test_unit.py",)
UNIT_PLAN = ("tests/fishers/test_unit_plan.py",)
SOFTMAX = ("tests/fishers/test_softmax.py",)
SOFTMAX_PLAN = ("tests/fishers/test_softmax_plan.py",)


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
        sngd_compile.plan.fisher_kind,
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
        return [*drawn[:-1], drawn[-1].roll(1, 0)]

    wrap(observe_units, "draw", shifted)


@caught_by(UNIT)
def units_have_the_mean_weight() -> None:
    """Every unit weighs the rows by the mean of all."""

    def add(original: Any, rows: Tensor, nu: Tensor, bias: bool, sum: Tensor) -> Any:
        return original(rows, nu.mean(-1, keepdim=True).expand_as(nu), bias, sum)

    wrap(observe_units, "_add_units", add)


@caught_by(UNIT)
def units_swapped_at_a_refresh() -> None:
    """What unfolds a weight takes the roots in another order than what folds it."""

    def unfold(original: Any, root: UnitRoot, weight: Tensor, bias: Tensor | None) -> Any:
        changed, changed_bias = original(
            root, weight.flip(-2), None if bias is None else bias.flip(-1)
        )
        return changed.flip(-2), None if changed_bias is None else changed_bias.flip(-1)

    wrap(UnitRoot, "unfold", unfold)


@caught_by(UNIT_PLAN)
def one_reader_of_two() -> None:
    """An activation is found although something else reads the pre-activation too."""
    common = following.common
    following.common = lambda found: common(sorted(found, key=lambda one: not one.activation)[:1])


@caught_by(SOFTMAX)
def classes_are_independent() -> None:
    """The local Fisher of logits forgets that probabilities sum to 1."""

    def add(original: Any, rows: Tensor, p: Tensor, bias: bool, sum: Tensor) -> Any:
        diagonal = observe_units._add_units
        blocks = torch.zeros(p.shape[1], *2 * (sum.shape[-1] // p.shape[1],), dtype=sum.dtype)
        diagonal(rows, p - p.square(), bias, blocks)
        sum.add_(torch.block_diag(*blocks))

    wrap(observe_units, "_add_softmax", add)


@caught_by(SOFTMAX)
def logits_laid_out_by_input() -> None:
    """A refresh unfolds the weights of logits one input after the other."""

    def unfold(original: Any, root: SoftmaxRoot, weight: Tensor, bias: Tensor | None) -> Any:
        turned = weight.mT.reshape(weight.shape)
        changed, changed_bias = original(root, turned, bias)
        return changed.reshape(weight.mT.shape).mT.contiguous(), changed_bias

    wrap(SoftmaxRoot, "unfold", unfold)


@caught_by(SOFTMAX_PLAN)
def any_result_is_a_logit() -> None:
    """A layer is taken for one of logits whatever follows it."""
    wrap(
        sngd_compile.plan.logits,
        "what_follows",
        lambda original, held: replace(original(held), activation=following.RETURNED),
    )
