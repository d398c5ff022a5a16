"""Deep copies of models, and who is in the way of one."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

from sngd_compile.errors import ModelError

Model = TypeVar("Model", bound=nn.Module)


def copied(model: Model, remedy: str) -> Model:
    """Return a deep copy.

    Args:
        model: The model or network.
        remedy: What to call instead, for the error.

    Raises:
        ModelError: Something in it cannot be copied; the text names it where it is a tensor that
            a forward left behind.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a module's own state raises on being copied
        text = str(error).strip().splitlines()
        kept = _kept_tensors(model)
        where = (
            f"{kept[0]} keeps a tensor with its graph, set it to None first, or " if kept else ""
        )
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({text[0] if text else error!r}); "
            f"{where}{remedy}"
        ) from error


def _kept_tensors(model: nn.Module) -> list[str]:
    """Name the attributes that hold results of a forward pass: torch copies none of those."""
    return [
        f"{name}.{attribute}" if name else attribute
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor) and value.grad_fn is not None
    ]
