"""Which model a command means: what code of the user's makes, or a class of transformers."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sngd_compile.errors import ModelError


@dataclass(frozen=True)
class Target:
    """Where a model comes from.

    Args:
        factory: `MODULE:NAME`, or `FILE.py:NAME`; None where `transformers` says it.
        transformers: Name of a class of transformers, or None.
        settings: `key=value` of that class's configuration.
    """

    factory: str | None
    transformers: str | None = None
    settings: Sequence[str] = ()

    def model(self, on_meta: bool = False) -> nn.Module:
        """Make the model.

        Args:
            on_meta: Make a class of transformers on the meta device, without memory.

        Raises:
            ModelError: Neither or both are given, or what was made is no module.
        """
        if (self.factory is None) == (self.transformers is None):
            raise ModelError(
                "name what makes the model, MODULE:NAME or FILE.py:NAME, or a class by "
                "--transformers CLASS; one of both"
            )
        if self.transformers is not None:
            return _of_transformers(self.transformers, self.settings, on_meta)
        made = found(str(self.factory))
        if callable(made) and not isinstance(made, nn.Module):
            made = made()
        if not isinstance(made, nn.Module):
            raise ModelError(f"{self.factory} gave {type(made).__name__}, expected a torch module")
        return made


def found(reference: str) -> Any:
    """Import what `MODULE:NAME` or `FILE.py:NAME` names, saying so: code of the user's runs.

    Raises:
        ModelError: It has another form, or there is no such file or name.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise ModelError(f"{reference!r}: expected MODULE:NAME or FILE.py:NAME")
    print(f"imports and runs {place}", file=sys.stderr)
    value: Any = _module_of_file(Path(place)) if place.endswith(".py") else _module(place)
    for part in name.split("."):
        if not hasattr(value, part):
            raise ModelError(f"{place} has no {name}")
        value = getattr(value, part)
    return value


def batch(reference: str | None, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments and the named arguments of one forward pass.

    Args:
        reference: What makes them, or is them: a tuple, a dictionary of named ones, or one value.
            None for the inputs that a model of transformers brings along.
        model: The model.

    Raises:
        ModelError: Nothing is named, and the model brings none.
    """
    if reference is None:
        given = getattr(model, "dummy_inputs", None)
        if given is None:
            raise ModelError(
                "name what makes one batch: --inputs MODULE:NAME, a function that returns what "
                "the model is called with"
            )
    else:
        given = found(reference)
        given = given() if callable(given) and not isinstance(given, torch.Tensor) else given
    if isinstance(given, dict):
        return (), given
    return (tuple(given) if isinstance(given, tuple | list) else (given,)), {}


def scalar_loss(reference: str | None) -> Callable[[Any], torch.Tensor] | None:
    """Import a function from the output of the model to a scalar."""
    return None if reference is None else found(reference)


def _module(name: str) -> Any:
    # The console script's folder is on the path, and not the one that it is called in.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _module_of_file(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    # Registered, so that classes defined in it can be copied and pickled.
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _of_transformers(name: str, settings: Sequence[str], on_meta: bool) -> nn.Module:
    transformers = importlib.import_module("transformers")
    class_ = getattr(transformers, name, None)
    if class_ is None or getattr(class_, "config_class", None) is None:
        raise ModelError(f"transformers has no model class {name}")
    config = class_.config_class(**dict(map(_setting, settings)))
    with torch.device("meta" if on_meta else "cpu"):
        model: nn.Module = class_(config)
    return model


def _setting(text: str) -> tuple[str, Any]:
    key, is_pair, value = text.partition("=")
    if not is_pair:
        raise ModelError(f"--config {text!r}: expected key=value")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
