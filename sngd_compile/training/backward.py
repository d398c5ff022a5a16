"""What waits for the end of a backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd import Variable

_OUTSIDE = -1


def after_backward(action: Callable[[], None]) -> None:
    """Do it now; inside a backward pass, when that ends.

    Optimizers may step in hooks of their parameters, while gradients of other parameters are still
    to come, in the coordinates that they had. Private, seen on torch 2.11 to 2.14.
    """
    if torch._C._current_graph_task_id() == _OUTSIDE:
        action()
    else:
        Variable._execution_engine.queue_callback(action)
