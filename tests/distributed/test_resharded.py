"""What torch.distributed.checkpoint writes goes on exactly on other numbers of processes."""

import pytest
import torch

from distributed import run

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without distributed"
)


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param("parted", marks=pytest.mark.slow),
        pytest.param("all", marks=pytest.mark.nightly),
    ],
)
def test_on_4_2_1_2_and_4_processes(cases, tmp_path):
    ((reports,), errors) = run("resharded.py", cases, 1, tmp_path)
    for report in reports:
        assert len(report) == (2 if cases == "parted" else 6)
        assert max(report.values()) < 1e-12, report
    assert "SngdWarning" not in errors
