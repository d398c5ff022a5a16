"""What a planted bug is, and the tools to plant one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LINEAR = ("tests/rules/test_linear.py",)
CONVOLUTION = ("tests/rules/test_convolution.py",)
MAX_ROWS = ("tests/laws/test_max_rows.py",)
TRAJECTORY = ("tests/theorem/test_trajectory.py", "-k", "MLP")


@dataclass(frozen=True)
class Bug:
    """A wrong line of code, and the tests that must notice.

    Args:
        name: Name of the function that plants it.
        description: What the library then does wrong.
        tests: Arguments of pytest.
        plant: Replaces a function of the library, in this process and for good.
    """

    name: str
    description: str
    tests: tuple[str, ...]
    plant: Callable[[], None]


BUGS: dict[str, Bug] = {}


def caught_by(tests: tuple[str, ...]) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register the decorated function as a bug which these tests must notice."""

    def register(plant: Callable[[], None]) -> Callable[[], None]:
        BUGS[plant.__name__] = Bug(plant.__name__, plant.__doc__ or "", tests, plant)
        return plant

    return register


def wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace `owner.name` by `wrapper(original, *args)`."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *args: wrapper(original, *args))
