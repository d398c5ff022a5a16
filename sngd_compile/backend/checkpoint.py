"""Saving and restoring the local Fishers of a model compiled with `backend="sngd"`."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor, nn

from sngd_compile.backend.compiled_models import COMPILED, parameters_of, states_of
from sngd_compile.backend.parameter_state import ParameterState, adopt
from sngd_compile.config import Config
from sngd_compile.errors import ModelError
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.modules.reconstructed import reconstructed_modules

State = dict[str, dict[str, Any]]


def state_dict(model: nn.Module) -> State:
    """Return the local Fishers of a model that is compiled with `backend="sngd"`.

    The model's own `state_dict()` holds its weights, which are ordinary; this is what comes beside
    them in a checkpoint. A reconstructed network needs nothing beside its own.

    Args:
        model: The compiled model, or the plain one inside.

    Returns:
        By weight name plain values and tensors, which `torch.save` writes and
        `torch.load(weights_only=True)` reads. Empty before the first step.

    Raises:
        ModelError: `model` is no module, or is reconstructed.
    """
    _require_plain(model)
    names = {id(p): own[0] for p, own in parameters_of(model).items()}
    return {
        name: {
            "form": state.spec.fields(),
            "rule": state.rule,
            "note": state.note,
            "bias": None if state.bias is None else names[id(state.bias)],
            # Training goes on to change these buffers in place, and a state that is kept in memory
            # must not follow.
            "fisher": {key: t.clone() for key, t in state.fisher.state_dict().items()},
        }
        for name, state in states_of(model).items()
    }


def load_state_dict(model: nn.Module, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Restore what `state_dict` returned, before or after the model is compiled.

    The options of the compilation count, not those of the run that was saved; the kind of root
    alone is kept.

    Args:
        model: The compiled model, or the plain one inside; its weights are not touched.
        state: Of a model with the same parameters.

    Raises:
        ModelError: `model` is no module or is reconstructed; a name or a shape does not fit.
    """
    _require_plain(model)
    named = {name: p for p, names in parameters_of(model).items() for name in names}
    # All are made before any is taken, so that a damaged state changes nothing.
    made = [_restored(name, saved, named) for name, saved in state.items()]
    for restored in made:
        adopt(restored)
    # As after a new frame: the next step looks again at who receives plain gradients.
    COMPILED.frames += 1


def _restored(name: str, saved: Mapping[str, Any], named: Mapping[str, Tensor]) -> ParameterState:
    """Make the state of one weight; nothing that there is changes."""
    missing = {"form", "rule", "note", "bias", "fisher"} - set(saved)
    if missing:
        raise ModelError(
            f"{name}: the state lacks {sorted(missing)}; it is damaged, or not from sngd.state_dict"
        )
    for needed in (name, saved["bias"]):
        if needed is not None and needed not in named:
            raise ModelError(f"the model has no parameter {needed!r}, which the state describes")
    weight = named[name]
    bias = None if saved["bias"] is None else named[saved["bias"]]
    try:
        spec = FisherSpec.from_fields(saved["form"])
    except ValueError as error:
        raise ModelError(f"{name}: the state is damaged, or of a newer version: {error}") from error
    if prod(spec.layout.view) != weight.numel():
        raise ModelError(f"{name} has shape {tuple(weight.shape)}; the state is of another shape")
    # The root fixes the shapes of the buffers. The other options come with the compilation, which
    # may be later than this: see `_configure_`.
    fisher = FisherLayer(name, spec, Config(root=spec.root), weight.device)
    try:
        fisher.load_state_dict(dict(saved["fisher"]))
    except RuntimeError as error:  # keys that lack, or are too many
        raise ModelError(f"{name}: the state is damaged: {error}") from error
    return ParameterState(weight, bias, fisher, saved["rule"], None, saved["note"])


def _require_plain(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if reconstructed_modules(model):
        raise ModelError("the model is reconstructed: its own state_dict() holds everything")
