"""SNGD beside the best of its peers: the table on top of the page, and every section's verdict."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from contenders import SNGD
from paper.paper_contenders import PAPER
from steps.step_report import table_lines

Content = dict[str, Any]
"""What is stored of one experiment."""

Outcome = Literal["better", "worse", "tie"]

OURS = (SNGD.name, PAPER.name)


def mean_and_spread(values: Sequence[float], form: str) -> str:
    """The mean, and in brackets the least and the largest."""
    least, mean, most = min(values), statistics.fmean(values), max(values)
    return f"{mean:{form}} ({least:{form}} to {most:{form}})"


def starred(text: str, outcome: Content) -> str:
    """A text with a star where a contender's rate is at the edge of those it tried."""
    tried = [one["rate"] for one in outcome["tried"]]
    return f"{text}{'*' if outcome['rate'] in (min(tried), max(tried)) else ''}"


@dataclass(frozen=True)
class Quantity:
    """What contenders are compared by.

    Args:
        form: Of its numbers.
        of: Its value in one stored run; None where the run does not have it.
        said: What a verdict says of who is better, worse or neither, before "than" or "as".
        more_is_better: As with accuracy; else less is.
        as_ratio: Whether ours is told as a multiple of theirs; else both are told.
    """

    form: str
    of: Callable[[Content], float | None]
    said: Mapping[Outcome, str]
    more_is_better: bool = False
    as_ratio: bool = True

    def values(self, outcome: Content) -> list[float]:
        """Its values on all seeds; none where a run fails or does not have it."""
        if outcome["failure"] or any(run["failure"] for run in outcome["runs"]):
            return []
        found = [self.of(run) for run in outcome["runs"]]
        there = [value for value in found if value is not None]
        return there if len(there) == len(found) else []


def to_goal(unit: str, form: str, fewer: str) -> Quantity:
    """Steps or seconds to the goal."""

    def of(run: Content) -> float | None:
        place = run["goals"][1]
        return None if place is None else float(place[unit])

    said: dict[Outcome, str] = {
        "better": f"{fewer} {unit} than",
        "worse": f"more {unit} than",
        "tie": f"about as many {unit} as",
    }
    return Quantity(form, of, said)


def in_the_end(judged: str) -> Quantity:
    """Accuracy or loss on the test data after the last step."""
    classifies = judged == "test accuracy"
    said: dict[Outcome, str] = {
        "better": f"a better {judged} than",
        "worse": f"a worse {judged} than",
        "tie": f"about the same {judged} as",
    }
    form = ".1%" if classifies else ".3g"
    return Quantity(form, lambda run: run["score"], said, classifies, as_ratio=False)


def quantities(content: Content) -> tuple[Quantity, Quantity, Quantity]:
    """Steps, seconds, and what the test data say."""
    steps, seconds = to_goal("steps", ".0f", "fewer"), to_goal("seconds", ".2f", "fewer")
    return steps, seconds, in_the_end(content["judged"])


@dataclass(frozen=True)
class Comparison:
    """Our values of one quantity beside those of the peer that is best in it, seed by seed."""

    quantity: Quantity
    ours: list[float]
    peer: str
    theirs: list[float]

    @property
    def outcome(self) -> Outcome:
        """Better or worse on every seed; else a tie."""
        if not self.ours:
            return "worse"
        sign = -1 if self.quantity.more_is_better else 1
        gaps = [sign * (one - other) for one, other in zip(self.ours, self.theirs, strict=True)]
        if max(gaps) < 0:
            return "better"
        return "worse" if min(gaps) > 0 else "tie"

    @property
    def beside(self) -> str:
        """Ours over theirs, or theirs."""
        if not self.quantity.as_ratio:
            return mean_and_spread(self.theirs, self.quantity.form)
        ratios = [one / other for one, other in zip(self.ours, self.theirs, strict=True)]
        return mean_and_spread(ratios, ".2f")

    @property
    def cells(self) -> list[str]:
        """Ours and theirs for a table."""
        if not self.ours:
            return ["not on every seed", self.peer]
        return [mean_and_spread(self.ours, self.quantity.form), f"{self.beside}, {self.peer}"]

    @property
    def told(self) -> str:
        """What a verdict says."""
        said = f"{self.quantity.said[self.outcome]} {self.peer}"
        if not self.ours:
            return f"{said}: not on every seed"
        if self.quantity.as_ratio:
            return f"{said}: {self.beside} times"
        return f"{said}: {mean_and_spread(self.ours, self.quantity.form)} against {self.beside}"


def compared(content: Content, name: str) -> list[Comparison]:
    """One of ours against the peer of the best mean in each quantity; nothing without a peer.

    A peer counts in a quantity where it has it on every seed.
    """
    found = []
    outcomes = {one["contender"]: one for one in content["contenders"]}
    for quantity in quantities(content):
        values = {contender: quantity.values(one) for contender, one in outcomes.items()}
        peers = {peer: there for peer, there in values.items() if there and peer not in OURS}
        if not peers:
            return []
        means = {peer: statistics.fmean(there) for peer, there in peers.items()}
        best = (max if quantity.more_is_better else min)(means, key=means.__getitem__)
        label = starred(best, outcomes[best])
        found.append(Comparison(quantity, values[name], label, peers[best]))
    return found


def ours_in(content: Content) -> dict[str, str]:
    """Which of ours took part, and how the page names them."""
    there = [one for one in content["contenders"] if one["contender"] in OURS]
    return {one["contender"]: starred(one["contender"], one) for one in there}


def verdicts(content: Content) -> list[str]:
    """One line for each of ours that took part."""
    lines = []
    for name in ours_in(content):
        told = "; ".join(comparison.told for comparison in compared(content, name))
        lines.append(f"- **{name}**: {told or 'no other contender is there on every seed'}.")
    return lines


COLUMNS = (
    "experiment",
    "steps to the goal",
    "over the best peer's",
    "seconds to the goal",
    "over the best peer's",
    "test result in the end",
    "best peer's",
)


def summary(stored: Mapping[str, Content]) -> str:
    """The table of all experiments that are stored, and how often SNGD is better."""
    rows: list[list[str]] = []
    for experiment, content in stored.items():
        for name, label in ours_in(content).items():
            found = compared(content, name)
            rows.append([f"[{experiment}](#{experiment}), {label}"])
            rows[-1] += [cell for comparison in found for cell in comparison.cells]
    return "\n".join([*table_lines(COLUMNS, rows), "", count(list(stored.values())), ""])


def count(stored: Sequence[Content]) -> str:
    """How often SNGD with its defaults is better than the best peer, worse, or neither."""
    found = [pairs for content in stored if (pairs := compared(content, SNGD.name))]
    parts = []
    for number, name in enumerate(("steps", "seconds", "the test result")):
        times = Counter(each[number].outcome for each in found)
        parts.append(
            f"in {name} better in {times['better']}, worse in {times['worse']}, "
            f"a tie in {times['tie']}"
        )
    return f"SNGD with its defaults, in {len(found)} experiments: " + "; ".join(parts) + "."
