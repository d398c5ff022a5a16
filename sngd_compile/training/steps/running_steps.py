"""Which optimizers step at this moment: inside one another, or inside a backward pass."""

from __future__ import annotations

import sys
from types import FrameType
from weakref import ReferenceType, ref

from torch.optim import Optimizer

from sngd_compile.torch_private import (
    OPTIMIZER_STEP,
    OUTSIDE_BACKWARD,
    STATE_MAKER,
    backward_pass,
)

_in_backward: tuple[int, list[ReferenceType[Optimizer]]] = OUTSIDE_BACKWARD, []


def running_steps() -> list[Optimizer]:
    """List the optimizers whose step is running, from the inside out.

    Inside another step, a step is but a part of that one: `ZeroRedundancyOptimizer` lets one that
    has the parameters of this process alone step, and sends weights to other processes after it; a
    subclass may call the step of its base.
    """
    # The stack, not a counter: a step that raises would leave a counter behind.
    running: list[Optimizer] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is OPTIMIZER_STEP:
            running.append(frame.f_locals["self"])
        frame = frame.f_back
    return running


def is_made_for_states(optimizer: Optimizer) -> bool:
    """Say whether the step of an optimizer that is running is none of training.

    Who asks `torch.distributed.checkpoint` for states of an optimizer that has none has it take a
    step that moves nothing: before a file is read, and at each save of SGD without momentum.
    """
    rate = optimizer.param_groups[0].get("lr")
    if isinstance(rate, float) and rate != 0.0:
        return False  # as in every step of most trainings: they look no further
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == STATE_MAKER:
            return True
        frame = frame.f_back
    return False


def note_backward(optimizer: Optimizer) -> None:
    """Remember who steps inside a backward pass."""
    global _in_backward
    running = backward_pass()
    if running != _in_backward[0]:
        _in_backward = running, []
    if running != OUTSIDE_BACKWARD:
        _in_backward[1].append(ref(optimizer))


def stepped_in_backward() -> list[Optimizer]:
    """Return the optimizers that stepped in the backward pass that is ending, or ran last."""
    return [optimizer for optimizer in (known() for known in _in_backward[1]) if optimizer]
