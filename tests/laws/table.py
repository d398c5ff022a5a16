"""Which laws are run: every law on every case, with every kind of local Fisher and of root."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import pytest

from laws.case import Case
from laws.suite import (
    Law,
    descent_is_natural,
    factor_is_the_jacobians_moment,
    factor_is_the_mean_of_the_rows,
    factor_is_the_weighted_moment,
    folding_gives_the_plain_layer,
    refreshing_keeps_the_function,
    rewriting_keeps_the_function,
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


def every_block_law(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Run a test of arguments `law`, `case`, `root` on cases with `Config(fisher="block")`."""
    laws = [*product(OF_ANY_FACTOR, ("cholesky",)), (root_whitens_the_factor, "symmetric")]
    return on_every([replace(case, fisher="block") for case in cases], laws)


def every_output_law(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Run a test of arguments `law`, `case`, `root` on cases whose outputs weigh the rows."""
    laws = product((*OF_THE_ROOT, factor_is_the_weighted_moment), ("cholesky",))
    return on_every(cases, [*laws, (root_whitens_the_factor, "symmetric")])


def on_every(cases: Sequence[Case], laws: Sequence[tuple[Law, str]]) -> pytest.MarkDecorator:
    """Run a test of arguments `law`, `case`, `root` for every law and root on every case."""
    listed = [
        pytest.param(law, case, root, id=f"{case.name}-{law.__name__}-{root}")
        for case, (law, root) in product(cases, laws)
    ]
    return pytest.mark.parametrize(("law", "case", "root"), listed)


def every_law(cases: Sequence[Case], without: Sequence[Law] = ()) -> pytest.MarkDecorator:
    """Run a test of arguments `law`, `case`, `root` for every law on every case.

    A case with a full factor comes a second time, with `Config(fisher="diagonal")`.
    """
    listed = [
        pytest.param(law, case, root, id=f"{case.name}-{law.__name__}-{root}")
        for case, law, root in _combinations(cases)
        if law not in without
    ]
    return pytest.mark.parametrize(("law", "case", "root"), listed)


def _combinations(cases: Sequence[Case]) -> Iterator[tuple[Case, Law, str]]:
    for case in cases:
        yield from ((case, law, root) for law, root in LAWS)
        if not case.diagonal:
            diagonal = replace(case, fisher="diagonal", diagonal=True, name=f"diagonal {case.name}")
            yield from ((diagonal, law, "cholesky") for law in OF_ANY_FACTOR)
