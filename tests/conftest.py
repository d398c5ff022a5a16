"""What every test may ask for: a fixed seed, double precision."""

from collections.abc import Iterator

import pytest
import torch


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
