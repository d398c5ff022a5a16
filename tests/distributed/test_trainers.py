"""What one process saves through Accelerate or Trainer goes on exactly in any number of them."""

import pytest
import torch

from distributed import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
]


def test_a_file_of_the_first_process_goes_on_in_any_number(tmp_path):
    ((gaps,), errors) = run("trainers.py", "trainers", 1, tmp_path)
    assert len(gaps) == 3 * 6 + 2 * 5
    assert max(gaps.values()) < 1e-10, gaps
    assert "SngdWarning" not in errors
