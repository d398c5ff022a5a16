"""A refresh on several processes is timed, and what is predicted is what was fitted."""

from pathlib import Path

import pytest

import sngd_compile as sngd
from steps import refresh_shares
from steps.refresh_shares import SHARED_OUT, Case, Point, fitted, lines_of, measured

TINY = Case("sketches", sngd.Config(root="nystrom", rank=2), layers=2, width=3, batch=4)


def test_the_fit_finds_what_was_put_in():
    def point(layers: int, width: int, processes: int) -> Point:
        seconds = layers * (2e-3 + 3e-9 * width**2 + 5e-6 * width / processes)
        sent = layers * (7 + 200 * width + 30 * width / processes)
        return Point(layers, width, width, processes, seconds, sent)

    model = fitted([point(n, d, p) for n in (1, 3) for d in (100, 900) for p in (2, 4)])
    expected = 2e-3 + 3e-9 * 5000 + 5e-6 * 500 / 8, 7 + 200 * 500 + 30 * 500 / 8
    assert model.of(500, 10, 8) == pytest.approx(expected)
    assert model.misfit < 1e-9


@pytest.mark.slow
def test_both_ways_are_timed_and_what_is_sent_is_told(monkeypatch):
    report = measured(TINY, 2)
    assert all(len(times) == refresh_shares.ROUNDS for times in report.times.values())
    assert len(report.sent) == 2
    assert min(report.sent) > 0
    monkeypatch.setattr(refresh_shares, "measured", lambda case, count: report)
    text = "\n".join(lines_of([TINY], [TINY], most=2))
    assert text.count(f"| {TINY.layers} | {TINY.width + 1} | {TINY.batch} |") == 2
    assert SHARED_OUT in text
    assert "**Not measured**" in text.split("## Prediction")[1]
    assert "| 1024 |" in text


def test_the_page_is_written(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(refresh_shares, "lines_of", lambda *given: iter(["a", "b"]))
    refresh_shares.main(2, tmp_path)
    assert (tmp_path / "processes.md").read_text() == "a\nb"
