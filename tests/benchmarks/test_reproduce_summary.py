"""What the summary and the verdicts of the paper's experiments say of stored runs."""

import pytest

from contenders import ADAMW, REFERENCE, SNGD
from paper.paper_contenders import PAPER
from paper.reproduce_summary import compared, count, mean_and_spread, summary, verdicts


def run(steps: float | None, seconds: float, score: float, failure: str | None = None) -> dict:
    goal = None if steps is None else {"steps": steps, "seconds": seconds, "loss": 0.5}
    score_there = None if failure else score
    return {"failure": failure, "goals": [goal, goal], "score": score_there}


def content(judged: str = "test accuracy", **runs_of: list[dict]) -> dict:
    """What is stored of contenders that are named by the keys, SGD at the edge of its rates."""
    names = {"sgd": REFERENCE, "adamw": ADAMW, "sngd": SNGD, "paper": PAPER}
    tried = [{"rate": rate, "loss": 1.0} for rate in (0.3, 0.1, 0.03)]
    contenders = [
        {
            "contender": names[key].name,
            "failure": None,
            "runs": runs,
            "rate": 0.3 if key == "sgd" else 0.1,
            "tried": tried,
        }
        for key, runs in runs_of.items()
    ]
    return {"judged": judged, "contenders": contenders}


SGD_RUNS = [run(100, 1.0, 0.8), run(120, 1.2, 0.8)]
ADAMW_RUNS = [run(80, 2.0, 0.9), run(80, 2.0, 0.7)]


def test_each_quantity_has_the_peer_that_is_best_in_it():
    ours = [run(40, 1.5, 0.81), run(20, 1.8, 0.82)]
    steps, seconds, score = compared(content(sgd=SGD_RUNS, adamw=ADAMW_RUNS, sngd=ours), "SNGD")
    assert (steps.peer, steps.outcome) == ("AdamW", "better")
    assert steps.cells == ["30 (20 to 40)", "0.38 (0.25 to 0.50), AdamW"]
    assert (seconds.peer, seconds.outcome) == ("SGD*", "worse")
    assert seconds.cells[1] == "1.50 (1.50 to 1.50), SGD*"
    assert score.cells == ["81.5% (81.0% to 82.0%)", "80.0% (80.0% to 80.0%), SGD*"]
    assert score.outcome == "better"


def test_better_is_on_every_seed():
    ours = [run(90, 1.0, 0.9), run(130, 1.3, 0.7)]
    outcomes = [each.outcome for each in compared(content(sgd=SGD_RUNS, sngd=ours), "SNGD")]
    assert outcomes == ["tie", "tie", "tie"]


@pytest.mark.parametrize(
    ("judged", "outcome"), [("test accuracy", "better"), ("test loss", "worse")]
)
def test_of_a_loss_less_is_better(judged, outcome):
    ours = [run(90, 1.0, 0.9), run(130, 1.3, 0.9)]
    stored = content(judged, sgd=SGD_RUNS, sngd=ours)
    assert compared(stored, "SNGD")[2].outcome == outcome
    assert verdicts(stored)[0].count(f"a {outcome} {judged} than SGD") == 1


def test_one_of_ours_is_no_peer_of_the_other():
    ours, preset = [run(90, 1.0, 0.9)] * 2, [run(1, 0.1, 1.0)] * 2
    stored = content(sgd=SGD_RUNS, paper=preset, sngd=ours)
    assert {each.peer for each in compared(stored, SNGD.name)} == {"SGD*"}
    assert [line.split("**")[1] for line in verdicts(stored)] == [PAPER.name, SNGD.name]


def test_who_misses_the_goal_on_a_seed_is_no_peer_there_and_never_better():
    fast = [run(1, 0.1, 0.95), run(None, 0.0, 0.95)]
    steps, _, score = compared(content(sgd=SGD_RUNS, adamw=fast, sngd=SGD_RUNS), "SNGD")
    assert (steps.peer, score.peer) == ("SGD*", "AdamW")
    diverged = [run(1, 0.1, 0.95), run(1, 0.1, 0.95, "diverges")]
    found = compared(content(sgd=SGD_RUNS, adamw=diverged, sngd=fast), "SNGD")
    assert [each.peer for each in found] == ["SGD*"] * 3
    assert [each.outcome for each in found] == ["worse", "worse", "better"]
    assert found[0].cells == ["not on every seed", "SGD*"]
    assert found[0].told == "more steps than SGD*: not on every seed"


def test_without_a_peer_nothing_is_compared():
    stored = content(sgd=[run(None, 0.0, 0.8)] * 2, sngd=SGD_RUNS)
    assert compared(stored, "SNGD") == []
    assert "no other contender is there" in verdicts(stored)[0]
    assert count([stored]).startswith("SNGD with its defaults, in 0 experiments")


def test_the_summary_has_a_row_for_each_of_ours_and_counts_the_defaults():
    better = content(sgd=SGD_RUNS, sngd=[run(50, 1.0, 0.8)] * 2)
    both = content(sgd=SGD_RUNS, paper=[run(50, 0.5, 0.9)] * 2, sngd=[run(150, 0.5, 0.9)] * 2)
    rows = summary({"one": better, "two": both}).splitlines()
    assert {row.count("|") for row in rows[:5]} == {8}
    assert [row.split(" | ")[0] for row in rows[2:5]] == [
        "| [one](#one), SNGD",
        "| [two](#two), SNGD, paper's preset",
        "| [two](#two), SNGD",
    ]
    assert rows[-1] == (
        "SNGD with its defaults, in 2 experiments: in steps better in 1, worse in 1, a tie in 0; "
        "in seconds better in 1, worse in 0, a tie in 1; "
        "in the test result better in 1, worse in 0, a tie in 1."
    )


def test_spread_is_mean_least_and_largest():
    assert mean_and_spread([3.0, 1.0, 5.0], ".1f") == "3.0 (1.0 to 5.0)"
