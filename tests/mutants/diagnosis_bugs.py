"""Bugs in what `explain` says of a trained network."""

from bug import caught_by, wrap
from sngd_compile.training import diagnosis

TESTS = "tests/plan/test_diagnosis.py"


@caught_by((TESTS, "-k", "eigenvalues"))
def directions_not_averaged() -> None:
    """The share of damped directions is their number."""
    wrap(diagnosis, "damped_share", lambda original, layer: original(layer) * layer.size)


@caught_by((TESTS, "-k", "eigenvalues"))
def damping_left_out_of_the_condition() -> None:
    """The condition number is of the factor, over the least eigenvalue of the damped one."""

    def condition(original, layer):
        eigenvalues = layer.factor.double() * layer.scale
        trace = eigenvalues.diagonal(dim1=-2, dim2=-1).sum(-1)
        return float((trace * layer.root.double().square().sum((-2, -1))).max())

    wrap(diagnosis, "least_condition", condition)


@caught_by((TESTS, "-k", "old"))
def roots_never_renewed() -> None:
    """The age of a root is counted from the first step, whatever was refreshed since."""

    def age(original, layer):
        steps = layer.schedule.steps
        return f"its root is {steps} steps old" if steps > diagnosis.LARGEST_AGE else ""

    wrap(diagnosis, "_age", age)
