"""States that lack a part of what they hold: a weight, its bias and their root go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sngd_compile.fisher.buffers import REMAINDER_DTYPE, REMAINDERS, is_narrow
from sngd_compile.fisher.carry_over import in_form
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.modules.portable_state import State, refuse_prime
from sngd_compile.torch_private import EXTRA_STATE
from sngd_compile.training.optimizer_hooks import known_optimizers, register_owner
from sngd_compile.training.refresh import LocalSite, change_form_


def require_sound(site: LocalSite, state: State, prefix: str) -> None:
    """Look at all that a state has of a site before anything of a network is taken.

    Args:
        site: The reconstructed weight; it stays as it is.
        state: What is loaded.
        prefix: Of the module, in the state.

    Raises:
        ModelError: The Fisher layer in the state is damaged, or weights without one are `w'`.
    """
    of_layer = f"{prefix}{site.fisher_name}."
    if any(key.startswith(of_layer) for key in state):
        _form_in(site, state, of_layer).require_sound(state, of_layer)
    elif any(n and f"{prefix}{n}" in state for n in (site.weight_name, site.bias_name)):
        refuse_prime(site, state, prefix)


def take_form_(site: LocalSite, state: State, prefix: str) -> None:
    """Part or join the bias of a site, as it is in a state.

    Args:
        site: The reconstructed weight.
        state: What is loaded.
        prefix: Of the module, in the state.

    Raises:
        ModelError: The Fisher layer in the state is damaged; the site stays as it was.
    """
    of_layer = f"{prefix}{site.fisher_name}."
    form = _form_in(site, state, of_layer)
    form.require_sound(state, of_layer)
    if form is site.fisher:
        return
    own = _parts(site, form, prefix)
    # Momenta belong to the w' that is loaded, and may have been loaded before it; those of a w'
    # that stays move along.
    is_whole = len(_fitting(own, state)) == len(own)
    change_form_(site, form.spec.has_bias, () if is_whole else known_optimizers())
    register_owner(site.module)  # optimizers look again how they train the bias


def _form_in(site: LocalSite, state: State, of_layer: str) -> FisherLayer:
    """Return the Fisher layer of a site, or one like it whose bias joins as it does in a state."""
    roots = [key for key in state if key.startswith(f"{of_layer}root_buffers.")]
    is_apart = any(key.startswith(f"{of_layer}root_buffers.of_weight.") for key in roots)
    # Of names that share one layer a file may hold all tensors under one, as with safetensors: what
    # is left under another says nothing of the form.
    if site.bias_name is None or not roots or is_apart is not site.fisher.spec.has_bias:
        return site.fisher
    return in_form(site.fisher, not is_apart)


def fit_remainders_in_(site: LocalSite, state: State, prefix: str, is_assigned: bool) -> None:
    """Let a state hold the remainders that the site will have, and no others.

    Args:
        site: The reconstructed weight.
        state: What is loaded, of another dtype perhaps, or from before there were remainders.
        prefix: Of the module, in the state.
        is_assigned: Whether the tensors of the state become the parameters.
    """
    of_layer = f"{prefix}{site.fisher_name}."
    # A file may hold the layer that names share under another of them.
    if not any(key.startswith(f"{of_layer}root_buffers.") for key in state):
        return
    pairs = zip((site.weight_name, site.bias_name), (site.weight, site.bias), strict=True)
    for remainder, (name, parameter) in zip(REMAINDERS, pairs, strict=True):
        given = state.get(f"{prefix}{name}") if is_assigned else None
        future = given if isinstance(given, Tensor) else parameter
        if future is None or not is_narrow(future):
            state.pop(of_layer + remainder, None)
        elif of_layer + remainder not in state:
            state[of_layer + remainder] = torch.zeros_like(future, dtype=REMAINDER_DTYPE)


def keep_together_(site: LocalSite, state: State, prefix: str) -> None:
    """Let a site take all that a state has of it, or nothing, where a part is missing or misfits.

    `w'` under the root of another is another weight. What is missing stays missing and what
    misfits stays as it is, so that loading reports it.

    Args:
        site: The reconstructed weight.
        state: What is loaded, a copy of the caller's; parts that fit become the present ones.
        prefix: Of the module, in the state.
    """
    own = _parts(site, site.fisher, prefix)
    fitting = _fitting(own, state)
    if len(fitting) < len(own):
        state.update((key, own[key]) for key in fitting)


def _parts(site: LocalSite, fisher: FisherLayer, prefix: str) -> dict[str, Any]:
    """List what belongs together, by the keys of a state."""
    pairs = zip((site.weight_name, site.bias_name), (site.weight, site.bias), strict=True)
    own: dict[str, Any] = {f"{prefix}{n}": p for n, p in pairs if n is not None and p is not None}
    of_layer = f"{prefix}{site.fisher_name}."
    layer = fisher.state_dict(prefix=of_layer, keep_vars=True)
    # Without a remainder w' is the same weight but for a rounding.
    kept = tuple(of_layer + name for name in REMAINDERS)
    return own | {key: value for key, value in layer.items() if key not in kept}


def _fitting(own: Mapping[str, Any], state: State) -> list[str]:
    """List the keys under which a state has what fits; a record has any length."""
    shapes = {key: getattr(state.get(key), "shape", None) for key in own}
    return [
        key
        for key, value in own.items()
        if shapes[key] == value.shape or (shapes[key] and key.endswith(EXTRA_STATE))
    ]
