"""Which root `Config(root="auto")` takes for one weight, and why."""

from __future__ import annotations

from dataclasses import replace
from math import inf, sqrt

import torch

from sngd_compile.config import RootKind
from sngd_compile.plan.parameter_uses import Decision

FEW_LAUNCHES = 128
"""Largest D of which a GPU finds a Cholesky root in one or two launches."""

LARGEST_WARM_CONDITION = 1e4 + 1
"""Of a damped factor: above it a root is found in float64 (docs/numerics.md, dtypes)."""


def with_root(decision: Decision, device: torch.device) -> Decision:
    """Replace `root="auto"` by the root that is taken on the device; other roots stay.

    A diagonal or an eigen kind asks for none: the choice is then "cholesky", without a reason.
    """
    config = decision.config
    if config.root != "auto":
        return decision
    if decision.kind in {"diagonal", "eigen"}:
        return replace(decision, config=config.replace(root="cholesky"))
    largest, condition = _largest_factor(decision), _condition_bound(decision)
    root, reason = choose_root(device, largest, condition)
    text = f'root = "auto" takes {root}: {reason}'
    return replace(decision, config=config.replace(root=root), root_reason=text)


def choose_root(device: torch.device, size: int, condition: float) -> tuple[RootKind, str]:
    """Choose the root of a local Fisher.

    Args:
        device: Of the weight; on any but a GPU as on a CPU.
        size: D, rows of its largest factor, bias included; at least 1.
        condition: What the relative damping bounds its condition number by; infinity without.

    Returns:
        "cholesky" or "warm", and why.

    Source: docs/numerics.md, which root "auto" takes. Tested by tests/roots/test_auto.py.
    """
    if device.type != "cuda":
        return "cholesky", "the fastest exact root where there is no GPU"
    if size <= FEW_LAUNCHES:
        return "cholesky", f"a factor of up to {FEW_LAUNCHES} takes a GPU a launch or two"
    if condition > LARGEST_WARM_CONDITION:
        return "cholesky", f"the damping bounds the condition number by {condition:.0e} only"
    return "warm", f"{size} is wide, products suit a GPU, and the damping bounds the condition"


def _largest_factor(decision: Decision) -> int:
    size = decision.layout.width + (decision.bias is not None)
    if decision.kind == "kronecker":
        return max(size, decision.layout.outputs)
    if decision.kind == "softmax":
        return size * decision.layout.outputs
    return max(decision.blocks, default=size)


def _condition_bound(decision: Decision) -> float:
    """Bound the condition number of a damped factor by the relative damping alone.

    Of several factors with one damping the largest may have the whole of their trace. Of two sides
    the narrower one has the larger share of the damping, in units of its own eigenvalues.
    """
    layout, relative = decision.layout, decision.config.damping_rel_trace
    if relative == 0.0:
        return inf
    count = layout.all_outputs if decision.kind == "unit" else layout.groups or 1
    bound = count / relative
    if decision.kind == "kronecker":
        sizes = (layout.width + (decision.bias is not None), layout.outputs)
        bound *= sqrt(max(sizes) / min(sizes))
    return bound + 1.0
