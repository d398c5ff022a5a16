"""Decompositions are shared out, roots are equal to the bit, and a refresh is that of all."""

import pytest
import torch

from distributed import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
]
LAYERS = 8


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_each_root_is_found_once_and_sent_to_all(size, tmp_path):
    reports, _ = run("shares.py", "", size, tmp_path)
    for kind, (_, sums, messages, *_) in reports[0]["counted"].items():
        counts = [report["counted"][kind] for report in reports]
        assert sum(owned for owned, *_ in counts) == LAYERS
        assert all(owned for owned, *_ in counts)
        # Sums and counts; what was found, that there is room, and whether the function was kept.
        assert (sums, messages) == (5, size)
        assert all(is_equal for _, _, _, is_equal, *_ in counts)
        # What is said of the messages is what they are.
        assert all(said == [sent for *_, sent, _ in counts] for *_, said in counts)
    if size == 2:
        assert_failures_are_those_of_all([report["failures"] for report in reports])
        assert [report["interrupted"] for report in reports] == [
            ["", True, True],
            ["KeyboardInterrupt", True, True],
        ]


def assert_failures_are_those_of_all(reports):
    """The second process raises its error, the first says so; both are as they were, then go on."""
    for case, (said, is_as_it_was) in reports[0].items():
        said_there, is_there = reports[1][case]
        assert is_as_it_was, case
        assert is_there, case
        if "in the end" not in case:
            assert said == "SngdError"
            assert said_there.lstrip("_") in case
