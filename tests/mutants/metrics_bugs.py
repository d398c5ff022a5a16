"""Bugs in the numbers that `metrics` gives a logger."""

import importlib
from typing import Any

from bug import caught_by, wrap
from sngd_compile.fisher.kinds.sketch import Sketch
from sngd_compile.fisher.roots.block import BlockRoot
from sngd_compile.fisher.schedule import Schedule
from sngd_compile.training.refresh import LocalSite

metrics = importlib.import_module("sngd_compile.metrics")
TESTS = "tests/training/test_metrics.py"


@caught_by((TESTS, "-k", "eigenvalues"))
def condition_of_the_root() -> None:
    """The condition number is that of R, not of the metric."""
    wrap(metrics, "_condition", lambda original, singular: original(singular).sqrt())


@caught_by((TESTS, "-k", "eigenvalues"))
def condition_of_the_last_block() -> None:
    """The condition number of a factor in blocks is that of its last block."""
    wrap(BlockRoot, "singular_range", lambda original, root: root.tail.singular_range())


@caught_by((TESTS, "-k", "natural"))
def bias_left_out_of_the_norm() -> None:
    """The length of a step is that of the weights alone."""
    wrap(LocalSite, "prime_gradients", lambda original, site: original(site)[:1])


@caught_by((TESTS, "-k", "residual"))
def residual_over_what_is_kept() -> None:
    """The residual of a sketch is relative to the trace of what it keeps."""

    def residual(original: Any, kind: Sketch, spec: Any, factor: Any, root: Any):
        share = original(kind, spec, factor, root)
        return share / (1.0 - share)

    wrap(Sketch, "residual", residual)


@caught_by((TESTS, "-k", "buffer"))
def numbers_of_the_first_root_kept() -> None:
    """What is known of a root is never found anew."""
    metrics._Known.is_of = lambda known, buffers: True


@caught_by((TESTS, "-k", "age"))
def age_since_the_last_observation() -> None:
    """Each observed step counts as a refresh."""
    wrap(Schedule, "advance", lambda original, schedule: _renewed(schedule, original(schedule)))


def _renewed(schedule: Schedule, due: bool) -> bool:
    if schedule.observing:
        schedule.note_root()
    return due
