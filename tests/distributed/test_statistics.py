"""Any process holds the statistics of all: its checkpoint resumes, and two-sided kinds add up."""

import itertools

import pytest
import torch

from distributed import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
]
WALKS = ["parallel", "sharded", "zero"]
RESUMED = [
    "resumed",
    "read by the first",
    "resumed alone",
    "resumed in place",
    "resumed in parts",
    "zero resumed",
    "zero resumed alone",
]
CASES = list(itertools.product([*WALKS, *RESUMED], ["shared", "kronecker", "apart"]))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes found."""
    return run("joint.py", "statistics", 2, tmp_path_factory.mktemp("two"))


def test_uneven_and_empty_batches_add_up(found):
    reports, errors = found
    apart = {case: max(report[", ".join(case)] for report in reports) for case in CASES}
    assert {case: size for case, size in apart.items() if not size < 1e-12} == {}
    assert "SngdWarning" not in errors


@pytest.mark.parametrize("way", ["parallel", "sharded"])
def test_refreshes_in_bfloat16_do_not_add_up(found, way):
    numbers = [report[f"narrow, {way}"] for report in found[0]]
    for early, late, share in numbers:
        assert 0 < late < 1.5 * early < 0.02
        assert share == 1.0  # what a process keeps beside its part of w' is of that part
    assert numbers[0][:2] == numbers[1][:2]


def test_a_refresh_by_hand_gives_all_processes_one_root(found):
    roots = [report["roots"] for report in found[0]]
    assert roots[0] == roots[1]
    assert all(size != 1.0 for size in roots[0])


def test_a_network_of_which_a_part_is_reconstructed(found):
    for report in found[0]:
        # Of two layers, 11 rows in each of the steps 0, 2 and 4.
        assert report["rows of a part"] == [33.0, 33.0]


def test_only_observed_steps_send_statistics(found):
    for report in found[0]:
        # Of two layers, in steps 0, 2, 4, 5 and 6: sums and counts go in one call each. A refresh,
        # in steps 0, 2 and 5, asks the others what they have found, whether they have room for it,
        # and whether it has kept the function.
        assert report["sent"] == [5, 0, 5, 0, 2, 5, 2, 0]


def test_join_is_refused_before_anything_waits(found):
    for report in found[0]:
        assert len(report["join"]) == 2
        assert all(text.startswith("0.weight: join()") for text in report["join"])
