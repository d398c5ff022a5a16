"""What reaches a weight: its layer run once, and what its rule was shown."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import sngd_compile as sngd
from laws.case import Case
from sngd_compile import Config, Rule
from sngd_compile.rules import RULES


@dataclass(frozen=True)
class RecordedUse:
    """One use of a weight with the activations it meets, and where their sum went."""

    rule: Rule
    samples: list[Tensor]
    geometry: tuple[int, ...]
    sum: Tensor

    @property
    def rows(self) -> Tensor:
        """The rule's rows."""
        return self.rule.rows(self.samples, self.geometry).double()

    def add_second_moment(self, bias: bool, out: Tensor) -> Tensor:
        """Return `out` with the rule's sum of outer products added."""
        return self.rule.second_moment(self.samples, self.geometry, bias, out)

    def add_sketch(self, bias: bool, omega: Tensor, out: Tensor) -> Tensor:
        """Return `out` with the rule's sketch added."""
        return self.rule.sketch(self.samples, self.geometry, bias, omega, out)

    def add_diagonal(self, bias: bool, out: Tensor) -> Tensor:
        """Return `out` with the rule's sum of squares added."""
        return self.rule.diagonal(self.samples, self.geometry, bias, out)


class Spy:
    """A rule that remembers what it is asked to sum."""

    def __init__(self, rule: Rule, seen: list[RecordedUse]):
        self.rule, self.seen = rule, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rule, name)

    def second_moment(self, samples: Any, geometry: Any, bias: bool, out: Tensor) -> Tensor:
        """Remember, then add."""
        self.seen.append(RecordedUse(self.rule, list(samples), tuple(geometry), out))
        return self.rule.second_moment(samples, geometry, bias, out)

    def sketch(self, samples: Any, geometry: Any, bias: bool, omega: Tensor, out: Tensor) -> Tensor:
        """Remember, then add."""
        self.seen.append(RecordedUse(self.rule, list(samples), tuple(geometry), out))
        return self.rule.sketch(samples, geometry, bias, omega, out)

    def diagonal(self, samples: Any, geometry: Any, bias: bool, out: Tensor) -> Tensor:
        """Remember, then add."""
        self.seen.append(RecordedUse(self.rule, list(samples), tuple(geometry), out))
        return self.rule.diagonal(samples, geometry, bias, out)

    def block_moments(self, samples: Any, geometry: Any, bias: bool, out: Sequence[Tensor]) -> None:
        """Remember, then add."""
        self.seen.append(RecordedUse(self.rule, list(samples), tuple(geometry), out[0]))
        self.rule.block_moments(samples, geometry, bias, out)


@contextmanager
def spies(seen: list[RecordedUse]) -> Iterator[None]:
    """Spy on every rule for a while."""
    rules = dict(RULES)
    RULES.update({name: Spy(rule, seen) for name, rule in rules.items()})
    try:
        yield
    finally:
        RULES.update(rules)


def recorded_uses(case: Case) -> list[RecordedUse]:
    """Run a case's layer on its input and return the uses of its weight."""
    net = sngd.reconstruct(case.build(), Config(max_rows=None, **case.fields))
    fisher = sngd.fisher_layers(net)[case.weight]
    net(case.input())  # every rule is known from here on
    seen: list[RecordedUse] = []
    with spies(seen):
        net(case.input())
    return [use for use in seen if shares_memory(use.sum, fisher.sum)]


def shares_memory(part: Tensor, whole: Tensor) -> bool:
    """Say whether one tensor lies in another."""
    return part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


__all__: Sequence[str] = ["RecordedUse", "recorded_uses"]
