"""Whether an opaque op may stand for arithmetic: not where functorch wants to see through it."""

from __future__ import annotations

import torch


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def are_transforms_active() -> bool:
    """Say whether a vmap, grad or jvp of functorch is running, or is being traced.

    Private, seen on torch 2.11 to 2.13. Dynamo guards what it traced with the transforms that were
    active, so the answer is a constant of its graph.
    """
    return torch._C._are_functorch_transforms_active()


def takes_opaque_ops() -> bool:
    """Say whether a graph is being traced, and no transform with it.

    A transform would need its own rule for every op, and a jvp would lose tangents silently.
    """
    return torch.compiler.is_compiling() and not are_transforms_active()
