"""Bugs in what verifies, which then finds too little or changes what it is shown."""

from typing import Any

import torch

from bug import caught_by, wrap
from sngd_compile.verification import statistics, step, subject
from sngd_compile.verification.calls import Products
from sngd_compile.verification.randomness import Generators

BUGS_FOUND = ("tests/verify/test_bugs.py",)
UNTOUCHED = ("tests/verify/test_untouched.py",)
HOLDS = ("tests/verify/test_laws.py", "-k", "mlp or conv")


@caught_by(BUGS_FOUND)
def factor_compared_with_itself() -> None:
    """What was counted is taken for what there is to count."""
    wrap(Products, "mean", lambda original, found, rows: found.sums / rows)


@caught_by(BUGS_FOUND)
def every_error_is_noise() -> None:
    """What rounding explains is taken to be larger than any step."""

    def error(original: Any, site: Any, moved: Any, gradient: Any, noise: Any) -> Any:
        return original(site, moved, gradient, 1e9 * (gradient.abs() + 1))

    wrap(step, "_step_error", error)


@caught_by(UNTOUCHED)
def the_given_network_is_run() -> None:
    """The network itself is worked on in the place of a copy."""
    subject.copy_of = lambda model: model


@caught_by(UNTOUCHED)
def generators_left_where_they_are() -> None:
    """The random generators are not set back."""
    Generators.restore = lambda self: None


@caught_by(UNTOUCHED)
def copies_stay_known() -> None:
    """The original keeps a list of the copies that were made of it."""

    def copy_of(model: Any) -> Any:
        made = subject.copied(model, "")
        for parameter in made.parameters():
            parameter.grad = None
        kept.append(made)
        return made

    kept: list[Any] = []
    subject.copy_of = copy_of


@caught_by(HOLDS)
def bias_left_out_of_the_rows() -> None:
    """The rows of the reference end in no 1."""

    def products(original: Any, calls: Any, layout: Any, vectors: Any) -> Any:
        found = original(calls, layout, vectors)
        if vectors.shape[0] > layout.width:
            found.sums[:, -1] = torch.zeros(())
        return found

    wrap(statistics, "second_moment_products", products)
