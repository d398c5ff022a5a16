"""What the callbacks of all trainers have in common."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from sngd_compile.errors import MissingExtraError, first_line
from sngd_compile.metrics import metrics
from sngd_compile.torch_private import tree_leaves
from sngd_compile.training.averaged_models import follow_origin
from sngd_compile.training.optimizer_hooks import changes_of_owners

OF_GRADIENTS = ("/norm", "/plain_norm", "/share")
"""What ends the names of metrics that are nothing without the gradients of a step."""


def missing_extra(extra: str, error: ImportError) -> MissingExtraError:
    """Return the error that says which extra of this package to install."""
    return MissingExtraError(
        f"sngd_compile.integrations.{extra} needs packages that cannot be imported "
        f"({first_line(error)}): pip install 'sngd-compile[{extra}]'"
    )


def logged_metrics(net: nn.Module, layers: bool, has_gradients: bool = True) -> dict[str, float]:
    """Return `metrics` under names for a logger that others use too.

    Args:
        net: The network.
        layers: Those of each layer too, beside those of all together.
        has_gradients: Whether the gradients of the step are there still.
    """
    return {
        f"sngd/{name}": value
        for name, value in metrics(net).items()
        if (layers or name.startswith("total/"))
        and (has_gradients or not name.endswith(OF_GRADIENTS))
    }


class HeldCopies:
    """Copies of the network in training that callbacks hold: averages, slow and best ones.

    They follow, so that whatever a callback averages into them are weights, see `sngd.follow`. One
    that is only kept computes what it did.
    """

    def __init__(self) -> None:
        self._seen = -1

    def follow(self, callbacks: Iterable[object], net: nn.Module) -> None:
        """Look for copies that were made since the last call, and let them follow."""
        if self._seen == changes_of_owners():
            return
        own = set(net.modules())
        for value in tree_leaves([list(vars(callback).values()) for callback in callbacks]):
            if isinstance(value, nn.Module):
                follow_origin(module for module in value.modules() if module not in own)
        self._seen = changes_of_owners()
