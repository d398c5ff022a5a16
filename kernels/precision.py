"""Products of float32 that are products of float32, whatever is set for the process."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

# Where a lower precision can be set: "none" inherits, "ieee" is exact, "tf32" and "bf16" are not.
_BACKENDS: Any = torch.backends
_SETTINGS = (_BACKENDS.cuda.matmul, _BACKENDS.mkldnn.matmul)
_EXACT = ("none", "ieee")


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
        for setting, precision in zip(_SETTINGS, before, strict=True):
            if setting.fp32_precision != precision:
                setting.fp32_precision = precision


def _legacy_precision() -> str | None:
    """Return what the older interface says; None where only the newer one was used."""
    try:
        return str(torch.get_float32_matmul_precision())
    except RuntimeError:
        return None
