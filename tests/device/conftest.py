"""Run by `make test-gpu`: without a GPU there is nothing to collect."""

import torch

if not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]
