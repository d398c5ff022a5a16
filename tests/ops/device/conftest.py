"""Run by `make test-gpu`: without a GPU there is nothing to collect."""

import pytest
import torch

if not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def kernels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to fall back: a test that passes on the reference tests nothing."""
    monkeypatch.setenv("SNGD_KERNELS", "triton")
