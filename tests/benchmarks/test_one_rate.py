"""One rate beside the best of several: who has one to try is compared seed by seed."""

import json
from dataclasses import replace

import pytest

from benchmarks_tiny import TINY, invoke
from contenders import SNGD
from study import one_rate


@pytest.mark.usefixtures("thread_count")
@pytest.mark.parametrize(
    ("rates", "ratio"), [((0.03, 1e-9), "1.00 (1.00 to 1.00)"), ((1e-9, 0.03), "not reached")]
)
def test_a_rate_beside_the_best(tmp_path, monkeypatch, rates, ratio):
    monkeypatch.setattr(one_rate, "wanted", lambda names: [TINY])
    tried = replace(SNGD, rates=rates)
    monkeypatch.setattr(one_rate, "PAIR", (tried, one_rate.at_one_rate(tried)))
    options = ["--steps", 12, "--seeds", 2, "--rates", 2, "--output", tmp_path]
    done = invoke(one_rate.main, *options)
    assert done.exit_code == 0, done.output
    (content,) = json.loads((tmp_path / "one_rate.json").read_text())
    tuned, fixed = content["contenders"]
    assert (tuned["rate"], fixed["rate"]) == (0.03, rates[0])
    assert [len(one["tried"]) for one in (tuned, fixed)] == [2, 1]
    (line,) = [row for row in (tmp_path / "one_rate.md").read_text().splitlines() if "tiny" in row]
    assert line.count(ratio) == 2
