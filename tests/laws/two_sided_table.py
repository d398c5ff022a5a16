"""Which laws a layer obeys under `Config(fisher="kronecker")`."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from laws.case import Case
from laws.suite import folding_gives_the_plain_layer, rewriting_keeps_the_function
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
    """Run a test of arguments `law`, `case`, `root` for every law on every case."""
    listed = [
        pytest.param(law, replace(case, fisher="kronecker"), root, id=f"{case.name}-{law.__name__}")
        for case in cases
        for law in LAWS
        for root in ("cholesky", "symmetric")[: 2 if law is both_roots_whiten else 1]
    ]
    return pytest.mark.parametrize(("law", "case", "root"), listed)
