"""Which laws a layer obeys under `Config(fisher="kronecker")`."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest

from laws.case import Case
from laws.suite import folding_gives_the_plain_layer, rewriting_keeps_the_function
from laws.table import by_root, parametrized
from laws.two_sided import (
    TwoSidedLaw,
    both_roots_whiten,
    descent_is_kfac,
    output_factor_is_the_moment_of_gradients,
    refreshing_keeps_the_function,
)

LAWS: tuple[TwoSidedLaw, ...] = (
    rewriting_keeps_the_function,
    folding_gives_the_plain_layer,
    output_factor_is_the_moment_of_gradients,
    both_roots_whiten,
    descent_is_kfac,
    refreshing_keeps_the_function,
)


def every_two_sided_law(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Run a test of the argument `laws` for every case and kind of root."""
    asked = [*product(LAWS, ("cholesky",)), (both_roots_whiten, "symmetric")]
    two_sided = [replace(case, fisher="kronecker") for case in cases]
    return parametrized(laws for case in two_sided for laws in by_root(case, asked))
