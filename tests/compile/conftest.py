"""What these tests may ask for: a Dynamo that remembers nothing."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget compiled code before and after, so that tests do not share frames."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
