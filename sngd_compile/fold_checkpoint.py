"""A training checkpoint becomes an ordinary one, without the network."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sngd_compile.errors import ModelError
from sngd_compile.fisher.spec import unpacked
from sngd_compile.fisher.weight_map import visibly_mapped
from sngd_compile.modules.portable_state import MARK, root_in
from sngd_compile.torch_private import EXTRA_STATE

LAYER = "_fisher."
"""Between the name of a weight and what a state holds of its Fisher layer."""

RECORD = f"{LAYER}{EXTRA_STATE}"


def fold_checkpoint(checkpoint: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Return a training checkpoint with ordinary weights in the place of `w'`.

    It has the keys of the plain model; a weight is folded in float64 and rounded once. No network
    is built: a checkpoint says itself what its Fisher layers are.

    Args:
        checkpoint: A file of `torch.save`, a `.safetensors` file, the folder of a distributed
            checkpoint, or what was read of one. States of reconstructed networks are found in it
            at any depth, whatever wrapped the network (`module.`, `_orig_mod.`). It is not changed.

    Returns:
        The same structure. States of optimizers, which belong to `w'`, are left out, and all else
        is as it was.

    Raises:
        ModelError: There is no such file, it is damaged or of a newer version, or a part of a layer
            is missing.

    Source: arXiv 2412.07441, `w = G^(-1/2) w'`. Tested by tests/modules/test_fold_checkpoint.py.
    """
    read = checkpoint if isinstance(checkpoint, Mapping) else _read(Path(checkpoint))
    folded = _folded(read)
    assert isinstance(folded, dict)
    return folded


def save_tensors(folded: Mapping[str, Any], file: Path) -> None:
    """Write what `fold_checkpoint` returns as safetensors.

    Raises:
        ModelError: An entry is no tensor.
    """
    others = [key for key, value in folded.items() if not isinstance(value, Tensor)]
    if others:
        raise ModelError(
            f"{file} would hold tensors alone, and {others[0]!r} of the checkpoint is none: "
            "write another kind of file, or fold the part that holds the network"
        )
    # Dense copies: the format takes no strides, and no tensors that share memory, as tied ones do.
    dense = torch.contiguous_format
    tensors = {key: value.clone(memory_format=dense) for key, value in folded.items()}
    import_module("safetensors.torch").save_file(tensors, file)


def _read(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint onto the CPU, whatever its format."""
    if not path.exists():
        raise ModelError(f"{path} does not exist: give the file or the folder of a checkpoint")
    try:
        if path.suffix == ".safetensors":
            found: Mapping[str, Any] = import_module("safetensors.torch").load_file(path)
            return found
        if path.is_dir():
            return _joined(path)
        return _loaded(path)
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {error}). Where it "
            "holds more than tensors and plain values, read it yourself, if you trust it, and give "
            "fold_checkpoint what torch.load returns"
        ) from error


def _joined(folder: Path) -> Mapping[str, Any]:
    """Read a distributed checkpoint, in this process alone."""
    formats = import_module("torch.distributed.checkpoint.format_utils")  # only now: it takes long
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is")  # that it reads alone is meant
        joined = Path(place) / "joined.pt"
        try:
            formats.dcp_to_torch_save(folder, joined)
        except import_module("torch.distributed.checkpoint").CheckpointException as error:
            raise ValueError("it is no distributed checkpoint, or a damaged one") from error
        return _loaded(joined)


def _loaded(path: Path) -> Mapping[str, Any]:
    found: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, Mapping):
        raise TypeError(f"it holds a {type(found).__name__}, no dictionary")
    return found


def _folded(part: Any) -> Any:
    """Fold the states in a part of a checkpoint; copies of dictionaries and lists, no other."""
    if isinstance(part, Mapping):
        kept = {key: _folded(value) for key, value in part.items() if not _is_optimizer(value)}
        return _folded_state(kept)
    if isinstance(part, list | tuple):
        return [_folded(value) for value in part if not _is_optimizer(value)]
    return part


def _is_optimizer(part: Any) -> bool:
    return isinstance(part, Mapping) and {"state", "param_groups"} <= part.keys()


def _folded_state(state: dict[str, Any]) -> dict[str, Any]:
    """Fold the weights of a state that have Fisher layers in it, and leave those out."""
    names = [key.removesuffix(RECORD) for key in state if str(key).endswith(RECORD)]
    known: dict[tuple[int, ...], Tensor] = {}
    folded = dict(state)
    for name in names:
        if f"{name}_{MARK}" not in state:
            folded |= _folded_pair(state, name, known)
    inner = tuple(f"{name}{LAYER}" for name in names)
    return {key: value for key, value in folded.items() if not str(key).startswith(inner)}


@torch.no_grad()
def _folded_pair(
    state: Mapping[str, Any], name: str, known: dict[tuple[int, ...], Tensor]
) -> dict[str, Tensor]:
    """Return the folded weight of this name, and its bias, by their keys."""
    try:
        record = unpacked(state[f"{name}{RECORD}"])
    except ValueError as error:
        raise ModelError(f"{name}: the record of its Fisher layer {error}") from error
    module = name[: name.rfind(".") + 1]
    keys = [name] if record.bias_name is None else [name, f"{module}{record.bias_name}"]
    missing = [key for key in keys if not isinstance(state.get(key), Tensor)]
    if missing:
        raise ModelError(f"{name}: {', '.join(missing)} is missing in the checkpoint")
    pair = [state[key] for key in keys]
    try:
        root = root_in(record.spec, state, name)
        folded = visibly_mapped("fold", root, record.spec.layout, pair[0], (*pair, None)[1])
    except KeyError as error:
        text = f"{name}: {error.args[0]} is missing in the checkpoint, or has another shape"
        raise ModelError(text) from error
    except (RuntimeError, IndexError) as error:
        raise ModelError(f"{name} does not fit its Fisher layer: {error}") from error
    values = [part.contiguous() for part in folded if part is not None]
    # Weights that were one tensor stay one: who saves the result finds ties by memory.
    tensors = [known.setdefault(_place(old), new) for old, new in zip(pair, values, strict=True)]
    return dict(zip(keys, tensors, strict=True))


def _place(tensor: Tensor) -> tuple[int, ...]:
    """Return what two tensors have in common that are the same numbers in the same memory."""
    return (tensor.data_ptr(), *tensor.shape, *tensor.stride())
