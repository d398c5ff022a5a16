"""What waits for the end of a backward pass."""

from __future__ import annotations

from collections.abc import Callable

from sngd_compile.torch_private import OUTSIDE_BACKWARD, backward_pass, queue_callback


def after_backward(action: Callable[[], None]) -> None:
    """Do it now; inside a backward pass, when that ends.

    Optimizers may step in hooks of their parameters, while gradients of other parameters are still
    to come, in the coordinates that they had.
    """
    if backward_pass() == OUTSIDE_BACKWARD:
        action()
    else:
        queue_callback(action)
