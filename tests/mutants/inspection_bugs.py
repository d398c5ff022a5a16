"""Bugs in what looks inside: names that become markup, records of another graph, a wrong order."""

from typing import Any

import jinja2

from bug import caught_by, wrap
from sngd_compile.command import app
from sngd_compile.inspection import drawing, page
from sngd_compile.passes import runner
from sngd_compile.plan import report

PAGE = ("tests/inspection/test_page.py", "-k", "fetches")
GRAPHS = ("tests/inspection/test_graphs.py",)
EXPLANATION = ("tests/inspection/test_explanation.py",)
COMMAND = ("tests/inspection/test_command.py",)


@caught_by(PAGE)
def names_become_markup() -> None:
    """The page takes a name for what it says."""
    original = jinja2.Environment
    page.jinja2.Environment = lambda **options: original(**{**options, "autoescape": False})


@caught_by(PAGE)
def control_characters_reach_the_page() -> None:
    """A name is put into the page as it is."""
    page._visible = lambda value: value


@caught_by(GRAPHS)
def names_end_their_quotes() -> None:
    """A quote in a name ends the label of a node."""
    drawing._quoted = lambda text: f'"{text}"'


@caught_by(GRAPHS)
def reasons_of_another_weight() -> None:
    """What a node is for is looked up by nothing."""
    wrap(runner, "_names", lambda original, place: [])


@caught_by(EXPLANATION)
def cheapest_first() -> None:
    """Costs are sorted the wrong way round."""
    for name, key in [*report.ORDERS.items()]:
        report.ORDERS[name] = lambda site, key=key: -key(site)


@caught_by(COMMAND)
def failures_exit_with_zero() -> None:
    """A law that fails is no failure of the command."""

    def verify(original: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        return type("Holds", (), {"exit_code": 0, "checks": found.checks})()

    wrap(app, "verify_", verify)
