"""States that lack a part of what they hold: a weight, its bias and their root go together."""

from __future__ import annotations

from typing import Any

from sngd_compile.modules.portable_state import State
from sngd_compile.torch_private import EXTRA_STATE
from sngd_compile.training.refresh import LocalSite


def keep_together_(site: LocalSite, state: State, prefix: str) -> None:
    """Let a site take all that a state has of it, or nothing, where a part is missing or misfits.

    `w'` under the root of another is another weight. What is missing stays missing and what
    misfits stays as it is, so that loading reports it.

    Args:
        site: The reconstructed weight.
        state: What is loaded, a copy of the caller's; parts that fit become the present ones.
        prefix: Of the module, in the state.
    """
    pairs = zip((site.weight_name, site.bias_name), (site.weight, site.bias), strict=True)
    own = {f"{prefix}{name}": p for name, p in pairs if name is not None and p is not None}
    own |= site.fisher.state_dict(prefix=f"{prefix}{site.weight_name}_fisher.", keep_vars=True)
    fitting = [k for k, value in own.items() if k in state and _fits(k, state[k], value)]
    if len(fitting) < len(own):
        state.update((key, own[key]) for key in fitting)


def _fits(key: str, given: Any, own: Any) -> bool:
    """Say whether a part is of the shape that it should have; records have any length."""
    return key.endswith(EXTRA_STATE) or getattr(given, "shape", None) == own.shape
