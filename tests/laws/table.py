"""Which laws are run: every law on every case, with every kind of local Fisher and of root."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import pytest

from laws.case import Case
from laws.subject import Subject
from laws.suite import (
    Law,
    descent_is_natural,
    factor_is_the_jacobians_moment,
    factor_is_the_mean_of_the_rows,
    factor_is_the_sketch_of_the_rows,
    factor_is_the_weighted_moment,
    folding_gives_the_plain_layer,
    refreshing_keeps_the_function,
    rewriting_keeps_the_function,
    root_is_that_of_the_sketch,
    root_whitens_the_factor,
    second_moment_is_that_of_the_rows,
)

OF_THE_ROOT: tuple[Law, ...] = (
    rewriting_keeps_the_function,
    refreshing_keeps_the_function,
    folding_gives_the_plain_layer,
    descent_is_natural,
    root_whitens_the_factor,
)
OF_THE_FACTOR: tuple[Law, ...] = (
    factor_is_the_mean_of_the_rows,
    factor_is_the_jacobians_moment,
    second_moment_is_that_of_the_rows,
)
LAWS = [*product(OF_THE_ROOT, ("cholesky", "symmetric")), *product(OF_THE_FACTOR, ("cholesky",))]

OF_ANY_FACTOR = (*OF_THE_ROOT, factor_is_the_mean_of_the_rows, factor_is_the_jacobians_moment)

OF_A_SKETCH: tuple[Law, ...] = (
    rewriting_keeps_the_function,
    refreshing_keeps_the_function,
    folding_gives_the_plain_layer,
    descent_is_natural,
    factor_is_the_sketch_of_the_rows,
    root_is_that_of_the_sketch,
)


@dataclass(frozen=True)
class Laws:
    """The laws that one case obeys with one kind of root: what a test checks.

    They share their networks, and all are asked, also after one has failed.
    """

    case: Case
    root: str
    laws: tuple[Law, ...]

    def check(self) -> None:
        """Ask every law.

        Raises:
            ExceptionGroup: It names the laws that do not hold, and has the error of each.
        """
        subject, errors = Subject(self.case, self.root), {}
        for law in self.laws:
            try:
                law(subject)
            except Exception as error:
                error.add_note(f"{law.__name__}: {(law.__doc__ or '').splitlines()[0]}")
                errors[law.__name__] = error
        if errors:
            broken = f"{self.case.name}, {self.root} root: {', '.join(errors)}"
            raise ExceptionGroup(broken, list(errors.values()))


def every_law(cases: Sequence[Case], without: Sequence[Law] = ()) -> pytest.MarkDecorator:
    """Run a test of the argument `laws` for every case and kind of root.

    A case with a full factor comes a second time, with `Config(fisher="diagonal")`, and a third
    time, with `Config(fisher="sketch")`.
    """
    asked = [(law, root) for law, root in LAWS if law not in without]
    of_a_diagonal = [(law, "cholesky") for law in OF_ANY_FACTOR if law not in without]
    of_a_sketch = [(law, "cholesky") for law in OF_A_SKETCH if law not in without]
    listed: list[Laws] = []
    for case in cases:
        listed += by_root(case, asked)
        if not case.diagonal:
            diagonal = replace(case, fisher="diagonal", diagonal=True, name=f"diagonal {case.name}")
            listed += by_root(diagonal, of_a_diagonal)
            sketch = replace(case, fisher="sketch", name=f"sketch {case.name}")
            listed += by_root(sketch, of_a_sketch)
    return parametrized(listed)


def every_block_law(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Run a test of the argument `laws` on cases with `Config(fisher="block")`."""
    asked = [*product(OF_ANY_FACTOR, ("cholesky",)), (root_whitens_the_factor, "symmetric")]
    blocks = [replace(case, fisher="block") for case in cases]
    return parametrized(laws for case in blocks for laws in by_root(case, asked))


def every_output_law(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Run a test of the argument `laws` on cases whose outputs weigh the rows."""
    asked = [*product((*OF_THE_ROOT, factor_is_the_weighted_moment), ("cholesky",))]
    asked.append((root_whitens_the_factor, "symmetric"))
    return parametrized(laws for case in cases for laws in by_root(case, asked))


def by_root(case: Case, asked: Sequence[tuple[Law, str]]) -> Iterator[Laws]:
    """Put the laws of each kind of root together, in the order given."""
    for root in dict.fromkeys(root for _, root in asked):
        yield Laws(case, root, tuple(law for law, of in asked if of == root))


def parametrized(listed: Iterable[Laws]) -> pytest.MarkDecorator:
    """Run a test of the argument `laws` once for each of those listed."""
    named = [pytest.param(laws, id=f"{laws.case.name}-{laws.root}") for laws in listed]
    return pytest.mark.parametrize("laws", named)
