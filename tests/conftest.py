"""What every test may ask for: a fixed seed, double precision."""

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from compile_cache import own_compile_cache

ROOT = Path(__file__).parents[1]
# `python -m pytest` puts the root there, and other packages then find `kernels` in it: imported a
# second time under that name, it would register its operations again, over those in use.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]

# A shell has what it starts in the background ignore Ctrl-C, as runners of tests may. Some send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Where there is no GPU, each seed is kept for one, with the caller's stack as text: a millisecond,
# many times a test.
if not torch.cuda.is_available():
    torch.manual_seed = torch.default_generator.manual_seed

_run = ExitStack()


def pytest_configure() -> None:
    """Claim a folder for compiled code before anything compiles; xdist's workers inherit it."""
    _run.enter_context(own_compile_cache())


def pytest_sessionfinish(exitstatus: int) -> None:
    """Give the folder back; a run that was interrupted may have left files half written."""
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        _run.close()


# How many examples hypothesis draws: make test and make check draw the same ones on each run.
SAME = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
# make test does not look for the smallest example that fails, which takes minutes; the others do.
settings.register_profile("test", SAME, max_examples=10, phases=[Phase.explicit, Phase.generate])
settings.register_profile("check", SAME, max_examples=50)
settings.register_profile("nightly", SAME, max_examples=1000, derandomize=False)
settings.register_profile("fuzz", SAME, max_examples=2000, derandomize=False)
settings.load_profile("test")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Let every test draw the same numbers, alone or after others."""
    torch.manual_seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """Make parameters and random numbers float64, so that equality can be asked to ten digits."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def thread_count() -> Iterator[None]:
    """Restore torch's thread count and subnormal numbers, which a script sets for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)
