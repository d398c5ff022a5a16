"""Parameters of half precision together with what they have lost: to move both, and to round."""

from __future__ import annotations

import torch
from torch import Tensor

from sngd_compile.fisher.buffers import REMAINDER_DTYPE, REMAINDERS, is_narrow
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.training.sharding import is_sharded, put_, whole

MOST_OF_IT = 0.98
"""Of a remainder: with that much of it a number is rounded to the parameter it was lost from."""


@torch.no_grad()
def fit_remainders_(fisher: FisherLayer, weight: Tensor, bias: Tensor | None) -> None:
    """Let a Fisher layer have a remainder for each parameter of half precision, and for no other.

    Parameters may have got another dtype since, or been sharded: then their remainders follow.
    """
    for name, parameter in zip(REMAINDERS, (weight, bias), strict=True):
        known = fisher._buffers[name]
        if parameter is None or not is_narrow(parameter):
            fisher._buffers[name] = None
        elif known is None or is_sharded(known) is not is_sharded(parameter):
            made = fisher._buffers[name] = torch.zeros_like(parameter, dtype=REMAINDER_DTYPE)
            if known is not None:
                put_(made, whole(known))


def completed(parameter: Tensor | None, remainder: Tensor | None) -> Tensor | None:
    """Return a parameter with what it has lost, a wider tensor; itself where nothing is kept.

    What no rounding to the present number could have lost is of a number that was overwritten
    since, as by pruning: it is left out.
    """
    if parameter is None or remainder is None:
        return parameter
    wide = parameter.detach().to(torch.float32)
    # A little less of it, since the remainder too is rounded, and may lie on the edge.
    is_of_it = (wide + MOST_OF_IT * remainder).to(parameter.dtype) == parameter.detach()
    return torch.where(is_of_it, wide + remainder, wide)


def round_(parameter: Tensor | None, remainder: Tensor | None, exact: Tensor | None) -> None:
    """Write what was completed, and has moved, to the parameter, and the rest to its remainder."""
    if parameter is not None and remainder is not None and exact is not None:
        parameter.copy_(exact)
        remainder.copy_(exact - parameter)
