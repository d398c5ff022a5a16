"""The registration holds where the kernels are what is registered, too."""

from typing import Any

import pytest
import torch

from ops.test_registration import CASES


@pytest.mark.parametrize(("operation", "arguments"), CASES.values(), ids=CASES)
def test_opcheck(operation: Any, arguments: tuple[Any, ...]) -> None:
    checks = ("test_schema", "test_faketensor")  # tracing has been tested on the other path
    torch.library.opcheck(operation, arguments, test_utils=checks)
