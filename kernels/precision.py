"""Products of float32 that are products of float32, whatever is set for the process."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

# Where a lower precision can be set: "none" inherits, "ieee" is exact, "tf32" and "bf16" are not.
_BACKENDS: Any = torch.backends
_SETTINGS = (_BACKENDS.cuda.matmul, _BACKENDS.mkldnn.matmul)
_EXACT = ("none", "ieee")
_CONVOLUTIONS = (_BACKENDS.cudnn.conv, _BACKENDS.mkldnn.conv)


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Let neither autocast nor a global setting lower the precision of a product.

    `torch.set_float32_matmul_precision("high")` is meant for the network. In a second moment, a
    root, or a weight that moves from one root to the next, again and again, its errors of 1e-3
    would stay.

    Args:
        device: where the products are taken.
    """
    with _autocast_off(device), nullcontext() if _is_exact() else _highest():
        yield


@contextmanager
def exact_convolutions(device: torch.device) -> Iterator[None]:
    """Let convolutions be those of float32 too: a GPU's are TF32 where nothing else is said.

    Args:
        device: where they are taken.
    """
    before = [setting.fp32_precision for setting in _CONVOLUTIONS]
    with exact_products(device):
        try:
            _set(_CONVOLUTIONS, ["ieee"] * len(before))
            yield
        finally:
            _set(_CONVOLUTIONS, before)


def _set(settings: Sequence[Any], precisions: Sequence[str]) -> None:
    """Write what is not so already."""
    for setting, precision in zip(settings, precisions, strict=True):
        if setting.fp32_precision != precision:
            setting.fp32_precision = precision


def _autocast_off(device: torch.device) -> AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _is_exact() -> bool:
    return all(setting.fp32_precision in _EXACT for setting in (*_SETTINGS, _BACKENDS))


@contextmanager
def _highest() -> Iterator[None]:
    """Set both interfaces, which must agree, and restore what either said."""
    before, legacy = [setting.fp32_precision for setting in _SETTINGS], _legacy_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy)
        _set(_SETTINGS, before)


def _legacy_precision() -> str | None:
    """Return what the older interface says; None where only the newer one was used."""
    try:
        return str(torch.get_float32_matmul_precision())
    except RuntimeError:
        return None
