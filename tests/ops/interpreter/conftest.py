"""Run by `make test` in a process of its own: Triton reads TRITON_INTERPRET when it is imported."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def kernels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to fall back: a test that passes on the reference tests nothing."""
    monkeypatch.setenv("SNGD_KERNELS", "triton")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what `new_empty` and `empty_like` return with NaN: what a kernel forgets shows."""
    allocate, allocate_like = torch.Tensor.new_empty, torch.empty_like

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poison(allocate(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(allocate_like(*a, **k)))
