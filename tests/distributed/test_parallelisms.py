"""Copies of shards, policies, pipelines: each walks the path of one process on the joint batch."""

import pytest
import torch

from distributed import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
]


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_each_walks_the_path_of_one_process(size, tmp_path):
    reports, errors = run("parallelisms.py", "", size, tmp_path)
    for report in reports:
        assert {case: apart for case, apart in report["gaps"].items() if not apart < 1e-10} == {}
        first, last, rows = report["half"]
        assert last < first
        assert rows == 13
    if size == 2:  # deep kronecker networks grow in these steps, and say so
        assert "SngdWarning" not in errors
