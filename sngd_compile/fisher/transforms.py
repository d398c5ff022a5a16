"""Whether an opaque op may stand for arithmetic, and how tangents get through one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from sngd_compile.torch_private import (
    are_functorch_transforms_active,
    autograd_keys_lifted,
    dual_level,
)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def are_transforms_active() -> bool:
    """Say whether a vmap, grad or jvp of functorch is running, or is being traced.

    Dynamo guards what it traced with the transforms that were active, so the answer is a constant
    of its graph.
    """
    return are_functorch_transforms_active()


def takes_opaque_ops() -> bool:
    """Say whether a graph is being traced, and no transform with it.

    A transform would need its own rule for every op, and a jvp would lose tangents silently.
    """
    return torch.compiler.is_compiling() and not are_transforms_active()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_forward_mode() -> bool:
    """Say whether tensors may carry tangents: `torch.autograd.forward_ad.dual_level` is active.

    A graph that was traced before meets it in its ops.
    """
    return dual_level() >= 0


def is_seen_through() -> bool:
    """Say whether a compiler, a tracer or a transform of functions has to see each operation."""
    tracing: Any = torch.jit
    if torch.compiler.is_compiling() or tracing.is_tracing():
        return True
    is_transformed: bool = are_transforms_active()
    return is_transformed or is_forward_mode()


def carrying_tangents(formula: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let forward mode see into an op: below autograd it would lose tangents silently."""

    @wraps(formula)
    def op(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        if not is_forward_mode():
            return formula(*arguments, **options)
        with autograd_keys_lifted(), torch.no_grad():
            return formula(*arguments, **options)

    return op
